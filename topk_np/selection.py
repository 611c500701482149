"""The k largest entries of each row: of a matrix, of one seen in blocks, of any array."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from array_api_compat import device

from topk_np._namespace import (
    Array,
    Namespace,
    array_namespace,
    cast,
    check_flag,
    check_floats,
    check_integer,
    compute_dtype,
    is_numpy,
    plain,
)
from topk_np.kernels import Selection, engine

# Finds are merged when so many times k slots wait: later costs less, earlier prunes more.
MERGE_FROM = 1
# A guess is wrong for one row in 10^5, where the order of the columns says nothing of the scores:
# the best are then spread over them by chance, and this is in standard deviations.
SPREAD = 4.5


class TopK(NamedTuple):
    """What `top_k` returns."""

    values: Array
    """(..., k), the input's dtype."""
    indices: Array
    """(..., k) int64, positions along the axis."""


def select(scores: Array, k: int) -> Selection:
    """The k best of each row of scores (C, N), ascending by index; -inf means not allowed."""
    return engine(array_namespace(scores)).select(scores, k)  # type: ignore[no-any-return]


class KBest:
    """
    The k best of each row of a matrix that is seen in blocks of columns, from left to right.

    The k best of all are the k best of each block's k best. Once k are known, only what exceeds
    the least of them can matter (an equal score further right loses), so that little of a later
    block is ever looked at twice.

    With `columns`, the number that a row has at least, none of them hidden, the floor is guessed
    from the first block on: of the 64 best of all, hardly more than 21 are in the first eighth
    of the columns. Less is found then; whether it was enough, `sure` says.
    """

    def __init__(self, k: int, columns: int | None = None) -> None:
        self._k = k
        self._columns = columns
        self._seen = 0
        self._floor: Array | None = None
        self._finds: Any = None  # of the engine of the first block

    def add(self, scores: Array, start: int, *others: Array) -> None:
        """See a block (C, n) from column `start` on; `others` are kept at the same places."""
        kernels = engine(array_namespace(scores))
        columns = scores.shape[1]
        if self._finds is None:
            self._finds = kernels.Finds(self._k)
            most = self._most(columns)
            if most < min(self._k, columns):
                self._floor = kernels.floor_of(scores, most)
        elif self._floor is None or self._finds.waiting >= MERGE_FROM * self._k:
            self._raise_floor()
        self._finds.add(scores, start, self._floor, *others)
        self._seen += columns

    def result(self, slots: int) -> list[Array]:
        """Values, int32 indices and `others` of the k best, (C, slots); -inf, -1 and 0 unused."""
        found = [*self._finds.merge()]
        xp = array_namespace(found[0])
        missing = slots - found[0].shape[1]
        if missing > 0:
            free = [-xp.inf, -1, *([0.0] * (len(found) - 2))]
            for i, (array, fill) in enumerate(zip(found, free, strict=True)):
                shape = (array.shape[0], missing)
                end = xp.full(shape, fill, dtype=array.dtype, device=device(array))
                found[i] = xp.concat([array, end], axis=1)
        return found

    @property
    def sure(self) -> bool:
        """Whether the result is right. If not, see all again, without `columns`."""
        if self._columns is None or self._floor is None:
            return True
        xp = array_namespace(self._floor)
        return bool(xp.all((self._kth(self._k) >= self._floor) | (self._floor == -xp.inf)))

    def _most(self, seen: int) -> int:
        """How many of a row's k best there are among as many columns, most likely at most."""
        if self._columns is None or seen >= self._columns:
            return self._k
        share = seen / self._columns
        spread = math.sqrt(self._k * share * (1 - share))
        return min(self._k, math.ceil(self._k * share + SPREAD * spread) + 1)

    def _raise_floor(self) -> None:
        """Set what later scores must exceed, from what was found so far."""
        floor = self._kth(self._most(self._seen))
        if self._floor is not None:
            floor = array_namespace(floor).maximum(floor, self._floor)
        self._floor = floor

    def _kth(self, k: int) -> Array:
        """(C,): the k-th largest of what was found, NaN as +inf; -inf where there are fewer."""
        values, *_ = self._finds.merge()
        xp = array_namespace(values)
        if values.shape[1] < k:
            return xp.full(values.shape[:1], -xp.inf, dtype=values.dtype, device=device(values))
        values = xp.where(xp.isnan(values), xp.inf, values)
        if values.shape[1] == k:
            return xp.min(values, axis=1)
        return xp.sort(values, axis=1)[:, values.shape[1] - k]


def take_slots(matrix: Array, indices: Array) -> Array:
    """``matrix[i, indices[i, j]]`` of a matrix (C, N); 0 where an index is -1."""
    return engine(array_namespace(matrix)).take_slots(matrix, indices)


def top_k(x: Array, k: int, /, *, axis: int = -1, sorted: bool = True) -> TopK:
    """
    The `k` largest values along an axis, and where they are.

    A plain selection: NaN ranks above everything, -inf is a value like any other, and among equal
    values the lower index is taken first.

    Parameters
    ----------
    x : array (..., N)
        Floating values; N is the length of `axis`.
    k : int
        How many to take, at least 1; more than N is taken as N.
    axis : int, default -1
        The axis to select along.
    sorted : bool, default True
        Largest first, equal values by lower index. If False, in ascending order of index.

    Returns
    -------
    TopK
        ``values`` (..., k) in the dtype of `x` and ``indices`` (..., k) int64, with the k entries
        on `axis`.

    Raises
    ------
    TypeError
        If `x` is not a floating array, `k` or `axis` is not an integer, or `sorted` not a bool.
    ValueError
        If `k` is below 1, or `axis` is not an axis of `x`.

    Notes
    -----
    Time is linear in the size of `x`. Name and order of arguments are those of the array API's
    draft.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import top_k
    >>> top_k(np.array([3.0, 1.0, 3.0, 2.0]), 3)
    TopK(values=array([3., 3., 2.]), indices=array([0, 2, 3]))
    """
    xp = check_floats({"x": x})
    x = plain(x)
    k = check_integer("k", k, least=1)
    sorted = check_flag("sorted", sorted)
    axis = check_integer("axis", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis must be an axis of x, which has {x.ndim} axes, got {axis}")

    last = xp.moveaxis(x, axis, -1)
    *lead, length = last.shape
    scores = xp.reshape(cast(xp, last, compute_dtype(xp, x)), (math.prod(lead), length))
    values, indices = _select_any(xp, scores, min(k, length))
    if sorted:
        # Ascending indices make a stable sort put the lower index first among equals.
        order = falling(xp, values)
        values = xp.take_along_axis(values, order, axis=1)
        indices = xp.take_along_axis(indices, order, axis=1)
    shape = (*lead, values.shape[1])
    return TopK(
        xp.moveaxis(xp.reshape(cast(xp, values, x.dtype), shape), -1, axis),
        xp.moveaxis(xp.reshape(xp.astype(indices, xp.int64), shape), -1, axis),
    )


def _select_any(xp: Namespace, scores: Array, k: int) -> tuple[Array, Array]:
    """`select`, with -inf as a value like any other."""
    values, indices, counts = select(scores, k)
    if k == 0 or (is_numpy(xp) and not xp.any(counts < k)):  # a device would have to be waited for
        return values, indices
    # The free slots go to the first -inf entries.
    masked = xp.where(scores == -xp.inf, xp.zeros_like(scores), -xp.inf)
    slots = xp.arange(k, dtype=xp.int32, device=device(counts))[None, :]
    free = slots - counts[:, None]
    fill = xp.take_along_axis(
        select(masked, k).indices, xp.astype(xp.where(free < 0, 0, free), xp.int64), axis=1
    )
    indices = xp.sort(xp.where(free < 0, indices, fill), axis=1)
    return xp.take_along_axis(scores, xp.astype(indices, xp.int64), axis=1), indices


def falling(xp: Namespace, values: Array) -> Array:
    """A stable order of each row: NaN, then falling values."""
    nan = xp.isnan(values)
    order = xp.argsort(xp.where(nan, 0.0, -values), axis=1, stable=True)
    rest = xp.astype(xp.take_along_axis(~nan, order, axis=1), xp.int8)
    return xp.take_along_axis(order, xp.argsort(rest, axis=1, stable=True), axis=1)
