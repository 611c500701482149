"""
The primitives on NumPy and scipy.sparse. Definitions: `topk_np.kernels.portable`.

The products are scipy's compressed-sparse-row products where the operand lies densely in memory,
else gathers. Selection is `topk_np.kernels.numpy_select`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels import GATHERED_BYTES
from topk_np.kernels.numpy_csr import by_column, csr, sparsetools
from topk_np.kernels.numpy_finds import Finds as Finds
from topk_np.kernels.numpy_found import take_slots as take_slots
from topk_np.kernels.numpy_found import used_slots
from topk_np.kernels.numpy_select import floor_of as floor_of
from topk_np.kernels.numpy_select import select as select
from topk_np.kernels.numpy_select import select_above as select_above
from topk_np.kernels.portable import masked_matmul as masked_matmul
from topk_np.kernels.portable import softmax_vjp as softmax_vjp
from topk_np.kernels.portable import threefry as threefry

# Values of more than this are read key by key, each for all queries of the chunk that keep it: that
# is their order in memory, which the processor foresees. Query by query it waits for each row.
CACHE_BYTES = 2**20
SLOTS_BY_KEY = 4  # times the kept slots are the keys at most, where that pays

# Where the largest score of each row is between these, a softmax need not take it off first.
LEAST_EXPONENT, MOST_EXPONENT = -40.0, 40.0


def matmul(rows: Array, keys: Array, scratch: Array) -> Array:
    """(C, n): ``rows @ keys.T``, written to `scratch`."""
    if keys.itemsize not in keys.strides or 0 in keys.strides:
        keys = np.ascontiguousarray(keys)  # BLAS needs one axis without gaps, and no repetition
    return np.matmul(rows, keys.T, out=scratch)


def hide(scores: Array, allowed: Array) -> Array:
    """`scores` (C, n), set to -inf in place where `allowed` is False."""
    np.copyto(scores, -np.inf, where=~allowed)
    return scores


def hide_outside(scores: Array, first: int, last: int) -> Array:
    """`scores` (C, n), -inf in place where row i is not in ``first + i <= column <= last + i``."""
    rows, columns = scores.shape
    row, column = np.arange(rows)[:, None], np.arange(columns)
    # Columns that are hidden from all rows, and the squares that the edges of the band run through.
    before, begun, last_one, after = np.clip(
        [first, first + rows, last + 1, last + rows], 0, columns
    )
    scores[:, :before] = -np.inf
    scores[:, after:] = -np.inf
    for edge, hidden in (
        (slice(before, begun), column[before:begun] < first + row),
        (slice(last_one, after), column[last_one:after] > last + row),
    ):
        np.copyto(scores[:, edge], -np.inf, where=hidden)
    return scores


def tanh(scores: Array) -> Array:
    """The hyperbolic tangent of `scores`, in place."""
    return np.tanh(scores, out=scores)


def softmax(scores: Array) -> Array:
    """Row-wise softmax; a row without allowed scores is all 0."""
    if scores.size == 0:
        return scores
    ones = np.ones((scores.shape[1], 1), scores.dtype)
    if scores.max() < MOST_EXPONENT:  # not with NaN
        weights = np.exp(scores)
        total = weights @ ones
        if total.min() > math.exp(LEAST_EXPONENT):
            weights /= total
            return weights
    # Too large or too small for exp: the largest of each row is taken off.
    largest = scores.max(axis=1, keepdims=True)
    largest[largest == -np.inf] = 0
    weights = scores - largest
    np.exp(weights, out=weights)
    total = weights @ ones
    total[total == 0] = 1
    weights /= total
    return weights


def gather_matmul(weights: Array, indices: Array, counts: Array, values: Array) -> Array:
    """(C, V): the sum over the used slots of ``weights[i, j] * values[indices[i, j]]``."""
    out = np.empty((weights.shape[0], values.shape[1]), weights.dtype)
    out.fill(0)
    if values.flags.c_contiguous and values.dtype == weights.dtype:
        multiply, matrix = sparsetools().csr_matvecs, csr(weights, indices, counts)
        if values.nbytes > CACHE_BYTES and SLOTS_BY_KEY * weights.size >= values.shape[0]:
            multiply, matrix = sparsetools().csc_matvecs, by_column(*matrix, values.shape[0])
        multiply(*out.shape[:1], *values.shape, *matrix, values.reshape(-1), out.reshape(-1))
        return out
    free = None
    if counts.size and counts.min() < indices.shape[1]:
        free = ~used_slots(indices, counts)
        weights = np.where(free, 0, weights)
    for block, gathered in _gather(indices, values, weights.dtype):
        if free is not None:
            gathered[free[block]] = 0
        np.matmul(weights[block, None, :], gathered, out=out[block, None, :])
    return out


def sampled_matmul(rows: Array, values: Array, indices: Array, counts: Array) -> Array:
    """(C, K): ``rows[i] . values[indices[i, j]]`` in the used slots, 0 in the others."""
    out = np.zeros(indices.shape, rows.dtype)
    for block, gathered in _gather(indices, values, rows.dtype):
        np.matmul(gathered, rows[block, :, None], out=out[block, :, None])
    if counts.size and counts.min() < indices.shape[1]:
        out[~used_slots(indices, counts)] = 0
    return out


def _gather(indices: Array, values: Array, dtype: Any) -> Iterator[tuple[slice, Array]]:
    """Blocks of rows with their gathered values (rows, K, V), arbitrary in unused slots."""
    k, width = indices.shape[1], values.shape[1]
    if values.shape[0] == 0 or k == 0:
        return
    size = max(1, GATHERED_BYTES // max(1, k * width * dtype.itemsize))
    buffer = np.empty((min(size, indices.shape[0]), k, width), values.dtype)
    for start in range(0, indices.shape[0], size):
        block = slice(start, start + size)
        if values.flags.c_contiguous:
            gathered = buffer[: indices.shape[0] - start]
            np.take(values, indices[block], axis=0, mode="clip", out=gathered)
        else:
            gathered = values[indices[block]]
        yield block, gathered.astype(dtype, copy=False)


def scatter_matmul(
    weights: Array, indices: Array, counts: Array, rows: Array, out: Array, first: int = 0
) -> Array:
    """
    `out`, to which ``weights[i, j] * rows[i]`` is added in its row ``indices[i, j] - first``.

    Indices outside of `out` are left out, so that several calls can share the work.
    """
    total = np.ascontiguousarray(out)
    last = first + out.shape[0]
    ends, columns, data = matrix = csr(weights, indices, counts)
    # Rows of a matrix are columns of its transpose, so that nothing has to be put in order.
    multiply = sparsetools().csc_matvecs
    reached = int(columns.max(initial=-1)) + 1
    if first > 0 or reached > last or out.nbytes > CACHE_BYTES:
        ends, columns, data = by_column(*matrix, max(last, reached))
        multiply, ends = sparsetools().csr_matvecs, ends[first : last + 1]
    shape = *out.shape[:1], *rows.shape
    multiply(*shape, ends, columns, data, rows.reshape(-1), total.reshape(-1))
    if total is not out:
        out[...] = total
    return out


def add_slots(weights: Array, indices: Array, counts: Array, out: Array) -> Array:
    """`out` (C, N), to which ``weights[i, j]`` is added at ``[i, indices[i, j]]``."""
    total = np.ascontiguousarray(out)
    matrix = csr(weights, indices, counts)
    sparsetools().csr_todense(*out.shape, *matrix, total.reshape(-1))
    if total is not out:
        out[...] = total
    return out
