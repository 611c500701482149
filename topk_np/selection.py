"""The k largest values along an axis of any array."""

from __future__ import annotations

import math
from typing import NamedTuple

from array_api_compat import device

from topk_np._namespace import (
    Array,
    Namespace,
    cast,
    check_flag,
    check_floats,
    check_integer,
    compute_dtype,
    plain,
)
from topk_np.kernels import engine
from topk_np.options.rules import falling


class TopK(NamedTuple):
    """Result of `top_k`."""

    values: Array
    """(..., k), the input's dtype."""
    indices: Array
    """(..., k) int64, positions along the axis."""


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
        The number to take, at least 1; more than N is taken as N.
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
    scores = xp.reshape(cast(xp, last, compute_dtype(xp, x)), (1, math.prod(lead), length))
    values, indices = _select_any(xp, scores, min(k, length))
    if sorted:
        # Ascending indices make a stable sort put the lower index first among equals.
        order = falling(xp, values)
        values = xp.take_along_axis(values, order, axis=2)
        indices = xp.take_along_axis(indices, order, axis=2)
    shape = (*lead, values.shape[2])
    return TopK(
        xp.moveaxis(xp.reshape(cast(xp, values, x.dtype), shape), -1, axis),
        xp.moveaxis(xp.reshape(xp.astype(indices, xp.int64), shape), -1, axis),
    )


def _select_any(xp: Namespace, scores: Array, k: int) -> tuple[Array, Array]:
    """`select`, with -inf as a value like any other."""
    ops = engine(xp)
    values, indices = ops.select(scores, k)
    if k == 0 or (ops.MAY_WAIT and not xp.any(indices < 0)):
        return values, indices
    # The free slots go to the first -inf entries.
    masked = xp.where(scores == -xp.inf, xp.zeros_like(scores), -xp.inf)
    used = xp.sum(xp.astype(indices >= 0, xp.int32), axis=2, keepdims=True, dtype=xp.int32)
    free = xp.arange(k, dtype=xp.int32, device=device(scores)) - used
    places = xp.astype(xp.where(free < 0, 0, free), xp.int64)
    fill = xp.take_along_axis(ops.select(masked, k).indices, places, axis=2)
    indices = xp.sort(xp.where(free < 0, indices, fill), axis=2)
    return xp.take_along_axis(scores, xp.astype(indices, xp.int64), axis=2), indices
