"""
The primitives on NumPy and scipy.sparse. Definitions: `topk_np.kernels.portable`.

Selection never sorts a row of scores. A floor that at least k scores of a row exceed is cheap to
find, few others exceed it, and what exceeds it is found eight scores at a time. The products are
scipy's compressed-sparse-row products where the operand lies densely in memory, else gathers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels import GATHERED_BYTES, Selection
from topk_np.kernels.portable import masked_matmul as masked_matmul
from topk_np.kernels.portable import softmax_vjp as softmax_vjp
from topk_np.kernels.portable import threefry as threefry

GROUPS_PER_SLOT = 4  # groups whose maxima give the floor, for each of the k to be kept
LEAST_GROUP = 8  # with smaller groups than this, partitioning the whole row is quicker
DENSE_HITS = 10  # rows shorter than this many k have a hit in most words of eight scores


def matmul(rows: Array, keys: Array, scratch: Array) -> Array:
    """(C, n): ``rows @ keys.T``, written to `scratch`."""
    if keys.itemsize not in keys.strides or 0 in keys.strides:
        keys = np.ascontiguousarray(keys)  # BLAS needs one axis without gaps, and no repetition
    return np.matmul(rows, keys.T, out=scratch)


def hide(scores: Array, allowed: Array) -> Array:
    """`scores` (C, n), set to -inf in place where `allowed` is False."""
    np.copyto(scores, -np.inf, where=~allowed)
    return scores


def tanh(scores: Array) -> Array:
    """The hyperbolic tangent of `scores`, in place."""
    return np.tanh(scores, out=scores)


def select(scores: Array, k: int) -> Selection:
    """The k largest of each row: lower index first among equals, NaN above all, -inf never."""
    k = min(k, scores.shape[1])
    if scores.shape[0] == 0 or k == 0:
        return _empty(scores.shape[0], k, scores.dtype)
    groups = GROUPS_PER_SLOT * k
    size = scores.shape[1] // groups
    if size < LEAST_GROUP:
        short = _select_short(scores, k)
        if short is None:
            return _select_by_row(scores, k, np.full(scores.shape[0], -np.inf, scores.dtype))
        return _pad(short, scores.shape[0], k)
    floor = _group_floor(scores, groups, size, k)
    found = _find(scores, k, floor)
    if found is None:
        return _select_by_row(scores, k, floor)
    return _pad(_trim(found, k), scores.shape[0], k)


def select_above(scores: Array, k: int, floor: Array) -> Selection:
    """The k largest of each row among what exceeds its `floor` (C,), in few slots."""
    k = min(k, scores.shape[1])
    if scores.shape[0] == 0 or k == 0:
        return _empty(scores.shape[0], k, scores.dtype)
    found = _find(scores, k, floor)
    if found is None:  # the floor lies too low for this block
        return select(np.where(scores <= floor[:, None], -np.inf, scores), k)
    return _pad(_trim(found, k), scores.shape[0])


class _Found(NamedTuple):
    """Entries of a matrix (C, N), row by row, ascending in each."""

    values: Array
    """(hits,)"""
    indices: Array
    """(hits,) int32 columns."""
    counts: Array
    """(C,) how many of each row."""


def _select_short(scores: Array, k: int) -> _Found | None:
    """The k largest of each row, by the row's k-th largest value; None if many equal that."""
    missed = _missed(scores, _below_kth(scores, k))
    if missed.size - np.count_nonzero(missed) > scores.shape[0] * _most(k):
        return None
    sparse = scores.shape[1] > DENSE_HITS * k
    flat = _places(missed) if sparse else np.flatnonzero(~missed[: scores.size])
    return _drop_ties(_take(scores, flat), k)


def _group_floor(scores: Array, groups: int, size: int, k: int) -> Array:
    """(C,): a value in each row that at least k entries exceed, where so many are above -inf."""
    # The k-th largest of the maxima of groups is at most the k-th largest of all.
    return _below_kth(scores[:, : groups * size].reshape(-1, size, groups).max(axis=1), k)


def _below_kth(scores: Array, k: int) -> Array:
    """(C,): the value just below the k-th largest of each row."""
    kth = scores.shape[1] - k
    largest = np.partition(scores, kth, axis=1)[:, kth]  # sorts NaN above +inf, as we do
    below = np.nextafter(largest, -np.inf)
    # What is just below 0 is 0 as well where the processor takes subnormal numbers for 0: it is a
    # setting of the thread, which others may have made (XLA makes it where it calls back).
    below[(below == 0) & (largest == 0)] = -np.finfo(scores.dtype).tiny
    # Just below NaN is +inf: what is not less than or equal to +inf is NaN.
    below[np.isnan(below)] = np.inf
    return below


_NO_HIT = np.uint64(0x0101010101010101)  # eight times True


def _find(scores: Array, k: int, floor: Array) -> _Found | None:
    """All that exceeds the floor of its row; None if that is many times k, in sum or in a row."""
    flat = _places(_missed(scores, floor), most=scores.shape[0] * _most(k) // 2)
    if flat is None:
        return None
    found = _take(scores, flat)
    return None if found.counts.max() > _most(k) else found


def _missed(scores: Array, floor: Array) -> Array:
    """Raveled: whether each score stays at or below its floor; True at the end, to fill a word."""
    missed = np.empty(-(-scores.size // 8) * 8, bool)
    missed[scores.size :] = True
    # A NaN is not less than or equal to anything, so it always counts as above.
    np.less_equal(scores, floor[:, None], out=missed[: scores.size].reshape(scores.shape))
    return missed


def _places(missed: Array, most: int | None = None) -> Array | None:
    """Where `missed` is False, found eight at a time; None if in more than `most` places."""
    words = missed.view(np.uint64)
    some = np.flatnonzero(words != _NO_HIT)
    hit = ~words[some].view(bool)
    if most is not None and np.count_nonzero(hit) > most:
        return None
    within = np.flatnonzero(hit)
    return (some[within >> 3] << 3) + (within & 7)


def _most(k: int) -> int:
    """Entries of a row that are worth looking at together when k of them are wanted."""
    return 4 * k + 32


def _take(scores: Array, flat: Array) -> _Found:
    """The entries at the ascending places `flat` of the raveled scores."""
    rows, columns = scores.shape
    starts = np.arange(rows + 1) * columns
    counts = np.diff(np.searchsorted(flat, starts))
    indices = (flat - np.repeat(starts[:-1], counts)).astype(np.int32)
    return _Found(scores.reshape(-1)[flat], indices, counts)


def _trim(found: _Found, k: int) -> _Found:
    """The k best of each row of what was found."""
    values, _, counts = found
    if counts.max() <= k:
        return found
    padded = np.full((counts.size, counts.max()), -np.inf, values.dtype)
    padded[_used(padded, counts)] = values
    floor = _below_kth(padded, k)
    return _drop_ties(_only(found, ~(values <= np.repeat(floor, counts))), k)


def _drop_ties(found: _Found, k: int) -> _Found:
    """What was found without what rows have beyond k: the last of those equal to the least."""
    tied = np.flatnonzero(found.counts > k)
    if tied.size == 0:
        return found
    ends = np.cumsum(found.counts)
    kept = np.ones(found.values.size, bool)
    for row in tied:
        start, end = ends[row] - found.counts[row], ends[row]
        values = found.values[start:end]
        equal = np.isnan(values) if np.isnan(values).all() else values == np.nanmin(values)
        kept[start + np.flatnonzero(equal)[k - found.counts[row] :]] = False
    return _only(found, kept)


def _only(found: _Found, kept: Array) -> _Found:
    """What was found, as far as `kept` (hits,) is True."""
    places = np.flatnonzero(kept)
    counts = np.diff(np.searchsorted(places, np.cumsum(found.counts)), prepend=0)
    return _Found(found.values[places], found.indices[places], counts)


def _pad(found: _Found, rows: int, slots: int | None = None) -> Selection:
    """What was found with as many slots in each row: those of the fullest row, if not given."""
    values, indices, counts = found
    slots = int(counts.max()) if slots is None else slots
    filled = counts.astype(np.int32)
    if values.size == rows * slots:
        shape = (rows, slots)
        return Selection(values.reshape(shape), indices.reshape(shape), filled)
    padded = _empty(rows, slots, values.dtype)
    used = _used(padded.indices, counts)
    padded.values[used], padded.indices[used] = values, indices
    return padded._replace(counts=filled)


def _select_by_row(scores: Array, k: int, floor: Array) -> Selection:
    """`select` with little memory, for rows of many equal scores: a row at a time."""
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


def softmax(scores: Array) -> Array:
    """Row-wise softmax; a row without allowed scores is all 0."""
    if scores.shape[1] == 0:
        return scores
    largest = scores.max(axis=1, keepdims=True)
    largest[largest == -np.inf] = 0
    weights = scores - largest
    np.exp(weights, out=weights)
    total = weights.sum(axis=1, keepdims=True)
    total[total == 0] = 1
    weights /= total
    return weights


def take_slots(matrix: Array, indices: Array) -> Array:
    """(C, K): ``matrix[i, indices[i, j]]``, 0 in unused slots."""
    rows, columns = matrix.shape
    if indices.size == 0 or columns == 0:
        return np.zeros(indices.shape, matrix.dtype)
    taken = matrix.reshape(-1)[indices + (np.arange(rows) * columns)[:, None]]
    if indices.min() < 0:
        taken[indices < 0] = 0
    return taken


def gather_matmul(weights: Array, indices: Array, counts: Array, values: Array) -> Array:
    """(C, V): the sum over the used slots of ``weights[i, j] * values[indices[i, j]]``."""
    out = np.zeros((weights.shape[0], values.shape[1]), weights.dtype)
    if values.flags.c_contiguous and values.dtype == weights.dtype:
        data, columns, ends = _csr(weights, indices, counts, values.shape[0])
        _sparse().csr_matvecs(
            *out.shape[:1], *values.shape, ends, columns, data, values.reshape(-1), out.reshape(-1)
        )
        return out
    free = None
    if counts.size and counts.min() < indices.shape[1]:
        free = ~_used(indices, counts)
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
    data, columns, ends = _csr(weights, indices, counts, out.shape[0], first)
    total = np.ascontiguousarray(out)
    # Rows of a matrix are columns of its transpose, so that nothing has to be put in order.
    _sparse().csc_matvecs(
        *out.shape[:1], *rows.shape, ends, columns, data, rows.reshape(-1), total.reshape(-1)
    )
    if total is not out:
        out[...] = total
    return out


def add_slots(weights: Array, indices: Array, counts: Array, out: Array) -> Array:
    """`out` (C, N), to which ``weights[i, j]`` is added at ``[i, indices[i, j]]``."""
    used = _used(indices, counts)
    out[np.nonzero(used)[0], indices[used]] += weights[used]  # a row has an index once
    return out


def _csr(
    weights: Array, indices: Array, counts: Array, size: int, first: int = 0
) -> tuple[Array, Array, Array]:
    """
    The columns `first` to ``first + size`` of a row-sparse matrix, unused slots left out.

    What is used, its columns from `first` on, and where rows end: compressed sparse rows.
    """
    rows, k = indices.shape
    last = first + size
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
    return weights.reshape(-1), indices.reshape(-1), ends


def _sparse() -> Any:
    """The loops below scipy's sparse matrices: they add in place, and check and copy nothing."""
    from scipy.sparse import _sparsetools  # takes a while to import

    return _sparsetools


def _used(indices: Array, counts: Array) -> Any:
    return np.arange(indices.shape[1]) < counts[:, None]
