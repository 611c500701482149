"""
Each primitive in plain array API calls: the readable definition that other engines must meet.

Unused slots are skipped, never multiplied: 0 x NaN would be NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from array_api_compat import device

from topk_np._namespace import Array, array_namespace
from topk_np.kernels import Selection
from topk_np.kernels.threefry import threefry as threefry

THREADS = False
MAY_WAIT = True
WHOLE_BUDGET = False
DOUBLE = False


def product(query: Array, key: Array, scale: float, scratch: Any, name: str) -> Array:
    """
    (G, C, n): ``scale * query keyᵀ``.

    Other engines write it to memory that `scratch`, a dictionary of the calling thread, holds under
    this `name`: it is free again at the thread's next product of that name.
    """
    scores = query @ array_namespace(key).matrix_transpose(key)
    return scores if scale == 1 else scores * scale


def hide(scores: Array, allowed: Array) -> Array:
    """`scores` (G, C, n), but -inf where `allowed`, which broadcasts, is False; maybe in place."""
    xp = array_namespace(scores)
    return xp.where(allowed, scores, -xp.inf)


def hide_outside(scores: Array, first: Any, last: Any) -> Array:
    """
    `scores` (G, C, n), but -inf where row i has not ``first + i <= column <= last + i``.

    `first` and `last` are integers, or NumPy arrays (G,) with one for each head.
    """
    xp = array_namespace(scores)
    where = {"dtype": xp.int64, "device": device(scores)}
    diagonal = xp.arange(scores.shape[2], **where) - xp.arange(scores.shape[1], **where)[:, None]
    if not isinstance(first, int):
        first, last = (xp.asarray(edge, **where)[:, None, None] for edge in (first, last))
    return hide(scores, (diagonal >= first) & (diagonal <= last))


def tanh(scores: Array) -> Array:
    """The hyperbolic tangent of `scores`; maybe in place."""
    return array_namespace(scores).tanh(scores)


def toeplitz(diagonals: Array, rows: int) -> Array:
    """(G, rows, n): a matrix with ``diagonals`` (G, rows - 1 + n), from the lower left one on."""
    xp, columns = array_namespace(diagonals), diagonals.shape[1] - rows + 1
    where = {"dtype": xp.int64, "device": device(diagonals)}
    places = xp.arange(columns, **where) + xp.arange(rows - 1, -1, -1, **where)[:, None]
    matrices = xp.take(diagonals, xp.reshape(places, (-1,)), axis=1)
    return xp.reshape(matrices, (diagonals.shape[0], rows, columns))


def select(scores: Array, k: int) -> Selection:
    """The k largest of each row: lower index first among equals, NaN above all, -inf never."""
    xp = array_namespace(scores)
    columns = scores.shape[-1]
    # Two stable sorts, the less important first: by falling value, then NaN before the rest.
    nan = xp.isnan(scores)
    order = xp.argsort(xp.where(nan, 0.0, -scores), axis=-1, stable=True)
    after = xp.astype(xp.take_along_axis(~nan, order, axis=-1), xp.int32)
    order = xp.take_along_axis(order, xp.argsort(after, axis=-1, stable=True), axis=-1)
    best = order[..., : min(k, columns)]
    # What is masked is taken back, the rest put in ascending order of index.
    taken = xp.take_along_axis(scores, best, axis=-1) != -xp.inf
    best = xp.sort(xp.where(taken, best, columns), axis=-1)
    used = best < columns
    values = xp.take_along_axis(scores, xp.where(used, best, 0), axis=-1) if columns else scores
    return Selection(xp.where(used, values, -xp.inf), xp.astype(xp.where(used, best, -1), xp.int32))


@dataclass
class RunningTopK:
    """The k best of each row of scores that come in blocks of columns, from left to right."""

    k: int
    columns: int
    """The length of a row."""
    _best: list[Array] = field(init=False, default_factory=list)
    """Values, indices and others (G, C, K) of the best so far."""

    def add(self, scores: Array, start: int, *others: Array) -> None:
        """Take in a block (G, C, n) from column `start` on; `others` are kept where it is."""
        xp = array_namespace(scores)
        values, indices = select(scores, self.k)
        kept = [take_slots(other, indices) for other in others]
        block = [values, xp.where(indices < 0, -1, indices + start), *kept]
        if self._best:  # the best of a union are the best of the bests
            both = [xp.concat(pair, axis=-1) for pair in zip(self._best, block, strict=True)]
            values, places = select(both[0], self.k)
            indices, *kept = (take_slots(array, places) for array in both[1:])
            block = [values, xp.where(places < 0, -1, indices), *kept]
        self._best = block

    def result(self, slots: int) -> list[Array]:
        """Values, int32 indices and `others` of the k best, (G, C, slots); 0 in unused slots."""
        xp = array_namespace(self._best[0])
        missing = slots - self._best[0].shape[-1]
        if missing <= 0:
            return self._best
        padded = []
        for array, fill in zip(self._best, [-xp.inf, -1, *[0.0] * len(self._best)], strict=False):
            shape = (*array.shape[:-1], missing)
            free = xp.full(shape, fill, dtype=array.dtype, device=device(array))
            padded.append(xp.concat([array, free], axis=-1))
        return padded


def pattern(indices: Array, keys: int) -> Any:
    """The places of entries in a row-sparse matrix (G, C, keys), as the products below take it."""
    return indices


def take_slots(matrix: Array, indices: Array) -> Array:
    """(G, C, K): ``matrix[g, i, indices[g, i, j]]``, 0 in unused slots."""
    xp = array_namespace(matrix)
    if matrix.shape[-1] == 0:
        return xp.zeros(indices.shape, dtype=matrix.dtype, device=device(matrix))
    used = indices >= 0
    taken = xp.take_along_axis(matrix, xp.astype(xp.where(used, indices, 0), xp.int64), axis=-1)
    return xp.where(used, taken, xp.zeros_like(taken))


def gather_matmul(weights: Array, pattern: Array, values: Array) -> Array:
    """(G, C, V): the row-sparse matrix times values (G, N, V): the sum over each row's slots."""
    xp = array_namespace(weights)
    terms = weights[..., None] * _gather(pattern, values)
    return xp.sum(xp.where(pattern[..., None] < 0, 0.0, terms), axis=2)


def sampled_matmul(rows: Array, values: Array, pattern: Array) -> Array:
    """(G, C, K): the entries of ``rows valuesᵀ`` (G, C, N) in the used slots, else 0."""
    xp = array_namespace(rows)
    products = xp.sum(rows[:, :, None, :] * _gather(pattern, values), axis=3)
    return xp.where(pattern < 0, 0.0, products)


def scatter_matmul(
    weights: Array, pattern: Array, rows: Array, out: Array, first: int = 0, fresh: bool = False
) -> Array:
    """
    `out` (G, n, V) plus the transposed row-sparse matrix times rows (G, C, V); maybe in place.

    `out` stands for the rows from `first` on of the product: other indices are left out, so that
    several calls can share the work. If `fresh`, what is in `out` is not read but taken for 0.
    """
    xp = array_namespace(weights)
    dense, hit = _dense(weights, pattern, first, first + out.shape[1])
    scores = xp.where(hit, xp.zeros_like(dense), -xp.inf)
    transpose = xp.matrix_transpose
    added = masked_matmul(transpose(dense), transpose(scores), rows)
    return added if fresh else out + added


def add_slots(weights: Array, pattern: Array, out: Array) -> Array:
    """`out` (G, C, N) plus the row-sparse matrix itself; maybe in place."""
    return out + _dense(weights, pattern, 0, out.shape[2])[0]


def masked_matmul(weights: Array, scores: Array, values: Array) -> Array:
    """
    ``weights values`` (G, C, n) x (G, n, V) over the pairs alone whose score is above -inf.

    The other weights are 0, so this is the plain product, except for rows of values with a NaN or
    inf: these are multiplied one by one, where that is allowed.
    """
    xp = array_namespace(weights)
    out = weights @ values
    if bool(xp.isfinite(xp.sum(out))):  # then no such row took part, not even times 0
        return out
    whole = xp.all(xp.isfinite(values), axis=2)
    out = xp.where(whole[:, None, :], weights, 0.0) @ xp.where(whole[..., None], values, 0.0)
    for row in range(values.shape[1]):
        if not bool(xp.all(whole[:, row])):
            own = (scores[:, :, row] != -xp.inf) & ~whole[:, row, None]
            term = weights[:, :, row, None] * values[:, None, row, :]
            out = out + xp.where(own[..., None], term, 0.0)
    return out


def zero_hidden(matrix: Array, scores: Array) -> Array:
    """`matrix` (G, C, n), but 0 where the score is -inf; other engines may leave what is finite."""
    xp = array_namespace(matrix)
    return xp.where(scores == -xp.inf, 0.0, matrix)


def softmax(scores: Array) -> Array:
    """Row-wise softmax; a row without allowed scores is all 0."""
    xp = array_namespace(scores)
    if scores.shape[-1] == 0:
        return scores
    largest = xp.max(scores, axis=-1, keepdims=True)
    weights = xp.exp(scores - xp.where(largest == -xp.inf, 0.0, largest))
    total = xp.sum(weights, axis=-1, keepdims=True)
    return weights / xp.where(total == 0, 1.0, total)


def softmax_vjp(weights: Array, dweights: Array) -> Array:
    """``weights * (dweights - sum(weights * dweights))``, row by row."""
    xp = array_namespace(weights)
    return weights * (dweights - xp.sum(weights * dweights, axis=-1, keepdims=True))


def relu(scores: Array) -> Array:
    """`scores` where they are above 0, or NaN; a masked score is neither."""
    return array_namespace(scores).where(scores <= 0, 0.0, scores)  # maximum may lose NaN


def relu_vjp(scores: Array, dweights: Array) -> Array:
    """`dweights` where the score is above 0, or NaN."""
    return array_namespace(scores).where(scores <= 0, 0.0, dweights)


def erf(x: Array) -> Array:
    """The error function, which the array API lacks."""
    xp = array_namespace(x)
    # exp(-x^2) 2/sqrt(pi) sum over n of 2^n x^(2n+1) / (2n+1)!!: all terms have one sign.
    inside = xp.where(xp.abs(x) > 6, 0.0, x)  # beyond 6 erf is 1 to the last bit
    term = 2 / math.sqrt(math.pi) * inside * xp.exp(-inside * inside)
    total = term
    for n in range(1, 130):
        term = term * (2 * inside * inside / (2 * n + 1))
        total = total + term
    return xp.where(x > 6, 1.0, xp.where(x < -6, -1.0, total))


def _dense(weights: Array, indices: Array, first: int, last: int) -> tuple[Array, Array]:
    """The columns from `first` to `last` of a row-sparse matrix, and where it has an entry."""
    xp = array_namespace(weights)
    columns = xp.arange(first, last, dtype=xp.int32, device=device(indices))
    shape = (*indices.shape[:2], last - first)
    hit = xp.zeros(shape, dtype=xp.bool, device=device(indices))
    dense = xp.zeros(shape, dtype=weights.dtype, device=device(indices))
    for slot in range(indices.shape[2]):
        here = indices[:, :, slot, None] == columns
        hit, dense = hit | here, xp.where(here, weights[:, :, slot, None], dense)
    return dense, hit


def _gather(indices: Array, values: Array) -> Array:
    """(G, C, K, V): the values (G, N, V) of each slot, arbitrary where it is unused."""
    xp = array_namespace(indices)
    shape = (*indices.shape, values.shape[2])
    if values.shape[1] == 0:
        return xp.zeros(shape, dtype=values.dtype, device=device(values))
    safe = xp.reshape(xp.where(indices < 0, 0, indices), (indices.shape[0], -1))
    heads = [xp.take(values[g, ...], safe[g, ...], axis=0) for g in range(shape[0])]
    return xp.reshape(xp.stack(heads), shape)
