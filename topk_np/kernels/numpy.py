"""
The primitives on NumPy and scipy.sparse. Definitions: `topk_np.kernels.portable`.

Selection never sorts a row of scores. A floor that at least k scores of a row exceed is cheap to
find, few others exceed it, and what exceeds it is found eight scores at a time. The products are
scipy's compressed-sparse-row products where the operand lies densely in memory, else gathers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels import Selection

GROUPS_PER_SLOT = 4  # groups whose maxima give the floor, for each of the k to be kept
LEAST_GROUP = 4  # with smaller groups than this, partitioning the whole row is quicker
GATHERED_BYTES = 2**19  # gathered rows held at once by the products


def matmul(rows: Array, keys: Array, scratch: Array) -> Array:
    """(C, n): ``rows @ keys.T``, written to `scratch`."""
    if keys.strides[-1] != keys.itemsize:
        keys = np.ascontiguousarray(keys)  # BLAS needs one axis without gaps
    return np.matmul(rows, keys.T, out=scratch)


def select(scores: Array, k: int) -> Selection:
    """The k largest of each row: lower index first among equals, NaN above all, -inf never."""
    k = min(k, scores.shape[1])
    if scores.shape[0] == 0 or k == 0:
        return _empty(scores.shape[0], k, scores.dtype)
    floor = _floor(scores, k)
    found = _find(scores, k, floor)
    return _widen(_select_by_row(scores, k, floor) if found is None else _trim(found, k), k)


def select_above(scores: Array, k: int, floor: Array) -> Selection:
    """The k largest of each row among what exceeds its `floor` (C,); few slots."""
    k = min(k, scores.shape[1])
    found = _find(scores, k, floor)
    if found is None:  # the floor lies too low for these scores: raise it
        floor = np.maximum(floor, _floor(scores, k))
        found = _find(scores, k, floor)
    return _select_by_row(scores, k, floor) if found is None else _trim(found, k)


def _floor(scores: Array, k: int) -> Array:
    """(C,): a value in each row that at least k entries exceed, where so many are above -inf."""
    columns = scores.shape[1]
    if k == columns:
        return np.full(scores.shape[0], -np.inf, scores.dtype)
    groups = GROUPS_PER_SLOT * k
    size = columns // groups
    if size < LEAST_GROUP:
        return _below_kth(scores, k)
    # The k-th largest of the maxima of groups is at most the k-th largest of all.
    return _below_kth(scores[:, : groups * size].reshape(-1, size, groups).max(axis=1), k)


def _below_kth(scores: Array, k: int) -> Array:
    """(C,): the value just below the k-th largest of each row."""
    kth = scores.shape[1] - k
    largest = np.partition(scores, kth, axis=1)[:, kth]  # sorts NaN above +inf, as we do
    # Just below NaN is +inf: what is not less than or equal to +inf is NaN.
    return np.where(np.isnan(largest), np.inf, np.nextafter(largest, -np.inf)).astype(scores.dtype)


_NO_HIT = np.uint64(0x0101010101010101)  # eight times True


def _find(scores: Array, k: int, floor: Array) -> Selection | None:
    """All that exceeds the floor of its row; None if that is many times k, in sum or in a row."""
    rows, columns = scores.shape
    size = rows * columns
    missed = np.empty(-(-size // 8) * 8, bool)
    missed[size:] = True
    # A NaN is not less than or equal to anything, so it always counts as above.
    np.less_equal(scores, floor[:, None], out=missed[:size].reshape(rows, columns))
    words = missed.view(np.uint64)
    some = np.flatnonzero(words != _NO_HIT)
    hit = ~words[some].view(bool)
    if np.count_nonzero(hit) > rows * _most(k) // 2:
        return None
    within = np.flatnonzero(hit)
    found = _compact(scores, (some[within >> 3] << 3) + (within & 7))
    return None if found.values.shape[1] > _most(k) else found


def _most(k: int) -> int:
    """Entries of a row that are worth looking at together when k of them are wanted."""
    return 4 * k + 32


def _compact(scores: Array, flat: Array, labels: Array | None = None) -> Selection:
    """
    The entries at the ascending places `flat` of the raveled scores, row by row.

    Their indices are their columns, or what `labels` (C, N) has in their place.
    """
    rows, columns = scores.shape
    starts = np.arange(rows + 1) * columns
    counts = np.diff(np.searchsorted(flat, starts))
    width = int(counts.max())
    values = scores.reshape(-1)[flat]
    if labels is None:
        indices = (flat - np.repeat(starts[:-1], counts)).astype(np.int32)
    else:
        indices = labels.reshape(-1)[flat]
    shape, counts = (rows, width), counts.astype(np.int32)
    if flat.size == rows * width:
        return Selection(values.reshape(shape), indices.reshape(shape), counts)
    found = _empty(rows, width, scores.dtype)
    used = _used(found.indices, counts)
    found.values[used], found.indices[used] = values, indices
    return found._replace(counts=counts)


def _trim(found: Selection, k: int) -> Selection:
    """The k best of each row of what was found."""
    values, indices, _ = found
    if values.shape[1] <= k:
        return found
    floor = _below_kth(values, k)
    best = _compact(values, np.flatnonzero(~(values <= floor[:, None])), indices)
    if best.values.shape[1] <= k:
        return best
    best = _select_by_row(values, k, floor)  # equal scores at the k-th place
    used = best.indices >= 0
    taken = np.take_along_axis(indices, np.where(used, best.indices, 0), axis=1)
    return best._replace(indices=np.where(used, taken, np.int32(-1)))


def _select_by_row(scores: Array, k: int, floor: Array) -> Selection:
    """`select_above`, a row at a time: for rows of many equal scores, within little memory."""
    result = _empty(scores.shape[0], k, scores.dtype)
    for i, row in enumerate(scores):
        kth = np.partition(row, row.size - k)[row.size - k]
        nan = np.isnan(row)
        above = np.flatnonzero(nan | (row > kth))[:k]
        equal = np.flatnonzero(row == kth)[: k - above.size]
        chosen = np.sort(np.concatenate([above, equal]))
        chosen = chosen[~(row[chosen] <= floor[i])]
        result.counts[i] = chosen.size
        result.values[i, : chosen.size] = row[chosen]
        result.indices[i, : chosen.size] = chosen
    return result


def _empty(rows: int, k: int, dtype: Any) -> Selection:
    return Selection(
        np.full((rows, k), -np.inf, dtype),
        np.full((rows, k), -1, np.int32),
        np.zeros(rows, np.int32),
    )


def _widen(found: Selection, k: int) -> Selection:
    """The same selection with k slots in each row."""
    width = found.values.shape[1]
    if width == k:
        return found
    wide = _empty(found.values.shape[0], k, found.values.dtype)
    wide.values[:, :width] = found.values
    wide.indices[:, :width] = found.indices
    return wide._replace(counts=found.counts)


def gather_matmul(weights: Array, indices: Array, counts: Array, values: Array) -> Array:
    """(C, V): the sum over the used slots of ``weights[i, j] * values[indices[i, j]]``."""
    if values.flags.c_contiguous and values.dtype == weights.dtype:
        return np.asarray(_csr(weights, indices, counts, values.shape[0]) @ values)
    out = np.zeros((weights.shape[0], values.shape[1]), weights.dtype)
    weights = np.where(_used(indices, counts), weights, 0)
    for block, gathered in _gather(indices, values, weights.dtype):
        gathered[~_used(indices[block], counts[block])] = 0
        np.matmul(weights[block, None, :], gathered, out=out[block, None, :])
    return out


def sampled_matmul(rows: Array, values: Array, indices: Array, counts: Array) -> Array:
    """(C, K): ``rows[i] . values[indices[i, j]]`` in the used slots, 0 in the others."""
    out = np.zeros(indices.shape, rows.dtype)
    for block, gathered in _gather(indices, values, rows.dtype):
        np.matmul(gathered, rows[block, :, None], out=out[block, :, None])
    if counts.size and counts.min() < indices.shape[1]:
        out[~_used(indices, counts)] = 0
    return out


def _gather(indices: Array, values: Array, dtype: Any) -> Iterator[tuple[slice, Array]]:
    """Blocks of rows with their gathered values (rows, K, V), arbitrary in unused slots."""
    k, width = indices.shape[1], values.shape[1]
    if values.shape[0] == 0 or k == 0:
        return
    size = max(1, GATHERED_BYTES // max(1, k * width * dtype.itemsize))
    for start in range(0, indices.shape[0], size):
        block = slice(start, start + size)
        if values.flags.c_contiguous:
            gathered = np.take(values, indices[block], axis=0, mode="clip")
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
    last = first + out.shape[0]
    matrix = _csr(weights, indices, counts, last, first).T.tocsr()
    size = max(1, GATHERED_BYTES // max(1, rows.shape[1] * rows.itemsize))
    for start in range(0, out.shape[0], size):
        block = slice(start, start + size)  # small enough for the sum to stay in the cache
        out[block] += matrix[block] @ rows
    return out


def _csr(weights: Array, indices: Array, counts: Array, last: int, first: int = 0) -> Any:
    """The columns first..last of the row-sparse matrix in scipy's form, unused slots left out."""
    from scipy.sparse import csr_array  # takes a while to import

    rows, k = indices.shape
    used = None
    if first > 0 or (counts.size and counts.min() < k):
        used = (indices >= first) & (indices < last)
    elif indices.size and int(indices[:, -1].max()) >= last:
        used = indices < last
    if used is None:
        ends = np.arange(0, rows * k + 1, k, dtype=np.int32) if k else np.zeros(rows + 1, np.int32)
    else:
        ends = np.zeros(rows + 1, np.int32)
        np.cumsum(np.count_nonzero(used, axis=1), out=ends[1:])
        weights, indices = weights[used], indices[used] - np.int32(first)
    shape = (rows, last - first)
    return csr_array((weights.reshape(-1), indices.reshape(-1), ends), shape=shape)


def _used(indices: Array, counts: Array) -> Any:
    return np.arange(indices.shape[1]) < counts[:, None]
