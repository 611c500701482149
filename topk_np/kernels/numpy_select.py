"""
The k largest of each row, on NumPy. Definitions: `topk_np.kernels.portable`.

Selection never sorts a row of scores. A floor that at least k scores of a row exceed is cheap to
find, few others exceed it, and what exceeds it is found eight scores at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels import Selection
from topk_np.kernels.numpy_mark import SORTED_BYTES

GROUPS_PER_SLOT = 4  # groups whose maxima give the floor, for each of the k to be kept
LEAST_GROUPS = 256  # where few are to be kept
LEAST_GROUP = 4  # with smaller groups than this, partitioning the whole row is quicker
DENSE_HITS = 10  # rows shorter than this many k have a hit in most words of eight scores


def select(scores: Array, k: int) -> Selection:
    """The k largest of each row: lower index first among equals, NaN above all, -inf never."""
    k = min(k, scores.shape[1])
    if scores.shape[0] == 0 or k == 0:
        return _empty(scores.shape[0], k, scores.dtype)
    scores = _by_row(scores)
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
    found = _find(_by_row(scores), k, floor)
    if found is None:  # the floor lies too low for this block
        return select(np.where(scores <= floor[:, None], -np.inf, scores), k)
    return _pad(_trim(found, k), scores.shape[0])


def floor_of(scores: Array, k: int) -> Array:
    """(C,): a value in each row that `k` entries exceed and few more, where so many are finite."""
    groups = max(GROUPS_PER_SLOT * k, LEAST_GROUPS)
    size = scores.shape[1] // groups
    if size < LEAST_GROUP:
        return _below_kth(scores.copy(), k)
    return _group_floor(scores, groups, size, k)


def _by_row(scores: Array) -> Array:
    """`scores`, copied if a row of them is not in one piece, or rows are not in order."""
    row, column = scores.strides
    fits = column == scores.itemsize and row >= scores.shape[1] * column
    return scores if fits and row % column == 0 else np.ascontiguousarray(scores)


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
    missed = _missed(scores, _below_kth(scores.copy(), k))
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
    """(C,): the value just below the k-th largest of each row, which is put in another order."""
    kth = scores.shape[1] - k
    # Either puts NaN above +inf, as we do.
    if scores.shape[1] * scores.itemsize <= SORTED_BYTES:
        scores.sort(axis=1)
    else:
        scores.partition(kth, axis=1)
    largest = scores[:, kth]
    below = np.nextafter(largest, -np.inf)
    if not below.min() > 0:
        # What is just below 0 is 0 as well where the processor takes subnormal numbers for 0: it is
        # a setting of the thread, which others may have made (XLA makes it where it calls back).
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
    places = some[within >> 3]
    places <<= 3
    within &= 7
    places += within
    return places


def _most(k: int) -> int:
    """Entries of a row that are worth looking at together when k of them are wanted."""
    return 4 * k + 32


def _take(scores: Array, flat: Array) -> _Found:
    """The entries at the ascending places `flat` of the raveled scores."""
    rows, columns = scores.shape
    starts = np.arange(rows + 1) * columns
    counts = np.diff(np.searchsorted(flat, starts))
    indices = (flat - np.repeat(starts[:-1], counts)).astype(np.int32)
    if not scores.flags.c_contiguous:
        gap = scores.strides[0] // scores.itemsize - columns
        flat = flat + np.repeat(np.arange(rows) * gap, counts)
    return _Found(_raveled(scores)[flat], indices, counts)


def _raveled(scores: Array) -> Array:
    """The memory from the first to the last of scores whose rows have no gaps within."""
    if scores.flags.c_contiguous:
        return scores.reshape(-1)
    step, (rows, columns) = scores.strides[0] // scores.itemsize, scores.shape
    size = (rows - 1) * step + columns
    return np.lib.stride_tricks.as_strided(scores, (size,), (scores.itemsize,), writeable=False)


def _trim(found: _Found, k: int) -> _Found:
    """The k best of each row of what was found."""
    values, _, counts = found
    if counts.max() <= k:
        return found
    padded = np.full((counts.size, counts.max()), -np.inf, values.dtype)
    padded[used_slots(padded, counts)] = values
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
    used = used_slots(padded.indices, counts)
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


def used_slots(indices: Array, counts: Array) -> Any:
    """(C, K) bool: which slots are in use."""
    return np.arange(indices.shape[1]) < counts[:, None]
