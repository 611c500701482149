"""
The primitives on NumPy and scipy.sparse. Definitions: `topk_np.kernels.portable`.

Selection finds the k-th largest value of each row and keeps what reaches it, so that indices come
out ascending; the products are scipy's compressed-sparse-row products, which release the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels import Selection


def select(scores: Array, k: int) -> Selection:
    """The k largest of each row: lower index first among equals, NaN above all, -inf never."""
    rows, columns = scores.shape
    k = min(k, columns)
    values = np.full((rows, k), -np.inf, scores.dtype)
    indices = np.full((rows, k), -1, np.int32)
    if k == 0 or rows == 0:
        return Selection(values, indices, np.zeros(rows, np.int32))

    kept = scores != -np.inf
    if k < columns:
        # np.partition sorts NaN to the end, above +inf: its k-th largest is ours.
        kth = np.partition(scores, columns - k, axis=1)[:, columns - k, None]
        kept &= ~(scores < kth)  # a NaN is not below anything
    counts = np.count_nonzero(kept, axis=1).astype(np.int32)
    for row in np.flatnonzero(counts > k):
        kept[row] = _break_ties(scores[row], kth[row, 0], k)
        counts[row] = k

    flat = np.flatnonzero(kept)
    used = slice(None) if flat.size == indices.size else _used(indices, counts)
    owner = np.repeat(np.arange(rows), counts)
    indices[used] = (flat - owner * columns).reshape(indices[used].shape)
    values[used] = scores.reshape(-1)[flat].reshape(values[used].shape)
    return Selection(values, indices, counts)


def _break_ties(row: Array, kth: Any, k: int) -> Array:
    """Which k entries of one row are kept when more than k reach its k-th largest value."""
    if np.isnan(kth):
        above, equal = np.zeros(row.shape, bool), np.isnan(row)
    else:
        above, equal = (row > kth) | np.isnan(row), row == kth
    above[np.flatnonzero(equal)[: k - np.count_nonzero(above)]] = True
    return above


def gather_matmul(weights: Array, indices: Array, counts: Array, values: Array) -> Array:
    """(C, V): the sum over the used slots of ``weights[i, j] * values[indices[i, j]]``."""
    return np.asarray(_csr(weights, indices, counts, values.shape[0]) @ values)


def sampled_matmul(rows: Array, values: Array, indices: Array, counts: Array) -> Array:
    """(C, K): ``rows[i] . values[indices[i, j]]`` in the used slots, 0 in the others."""
    if values.shape[0] == 0:
        return np.zeros(indices.shape, rows.dtype)
    out = np.empty(indices.shape, rows.dtype)
    for start in range(0, rows.shape[0], _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        gathered = values[indices[block]]  # an unused slot, -1, takes the last row for now
        np.matmul(gathered, rows[block, :, None], out=out[block, :, None])
    if counts.size and counts.min() < indices.shape[1]:
        out[~_used(indices, counts)] = 0
    return out


_BLOCK_ROWS = 64  # rows of a chunk whose gathered values are held at once by sampled_matmul


def scatter_matmul(weights: Array, indices: Array, counts: Array, rows: Array, out: Array) -> Array:
    """`out` (N, V), to which ``weights[i, j] * rows[i]`` is added in its row ``indices[i, j]``."""
    out += _csr(weights, indices, counts, out.shape[0]).T @ rows
    return out


def _csr(weights: Array, indices: Array, counts: Array, columns: int) -> Any:
    """The row-sparse matrix (C, N) in scipy's form, its unused slots left out."""
    from scipy.sparse import csr_array  # takes a while to import

    rows, k = indices.shape
    ends = np.zeros(rows + 1, np.int32)
    np.cumsum(counts, out=ends[1:])
    if ends[-1] < rows * k:
        used = _used(indices, counts)
        weights, indices = weights[used], indices[used]
    return csr_array((weights.reshape(-1), indices.reshape(-1), ends), shape=(rows, columns))


def _used(indices: Array, counts: Array) -> Any:
    return np.arange(indices.shape[1]) < counts[:, None]
