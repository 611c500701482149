"""
The entries of a matrix that exceed a floor of their row, found and kept one after the other.

Few do, so they are found eight at a time, as 64-bit words of the comparison's result, and kept
without gaps, since rows have different numbers of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels import Selection
from topk_np.kernels.numpy_mark import SORTED_BYTES

_NO_HIT = np.uint64(0x0101010101010101)  # eight times True


class Found(NamedTuple):
    """Entries of a matrix (C, N), row by row, ascending in each."""

    values: Array
    """(hits,)"""
    indices: Array
    """(hits,) int32 columns."""
    counts: Array
    """(C,) how many of each row."""


def most_found(k: int) -> int:
    """Entries of a row that are worth looking at together when k of them are wanted."""
    return 4 * k + 32


def few_found(k: int) -> int:
    """Entries of a row, on average, up to which a higher floor costs more to find than it saves."""
    return 3 * k // 2 + 16


def by_row(scores: Array) -> Array:
    """`scores`, copied if a row of them is not in one piece, or rows are not in order."""
    row, column = scores.strides
    fits = column == scores.itemsize and row >= scores.shape[1] * column
    return scores if fits and row % column == 0 else np.ascontiguousarray(scores)


def missed(scores: Array, floor: Array) -> Array:
    """Raveled: whether each score stays at or below its floor; True at the end, to fill a word."""
    below = np.empty(-(-scores.size // 8) * 8, bool)
    below[scores.size :] = True
    # A NaN is not less than or equal to anything, so it always counts as above.
    np.less_equal(scores, floor[:, None], out=below[: scores.size].reshape(scores.shape))
    return below


def places(below: Array, most: int | None = None) -> Array | None:
    """Where `missed` is False, found eight at a time; None if in more than `most` places."""
    words = below.view(np.uint64)
    some = np.flatnonzero(words != _NO_HIT)
    if most is not None and some.size > most:
        return None
    hit = ~words[some].view(bool)
    if most is not None and np.count_nonzero(hit) > most:
        return None
    within = np.flatnonzero(hit)
    flat = some[within >> 3]
    flat <<= 3
    within &= 7
    flat += within
    return flat


def take(scores: Array, flat: Array) -> Found:
    """The entries at the ascending places `flat` of the raveled scores, which lie by row."""
    rows, columns = scores.shape
    starts = np.arange(rows + 1) * columns
    counts = np.diff(np.searchsorted(flat, starts))
    indices = (flat - np.repeat(starts[:-1], counts)).astype(np.int32)
    gap = row_gap(scores)
    if gap:
        flat = flat + np.repeat(np.arange(rows) * gap, counts)
    return Found(raveled(scores)[flat], indices, counts)


def row_gap(scores: Array) -> int:
    """How many numbers lie between the rows of scores."""
    rows, columns = scores.shape
    return 0 if rows < 2 else int(scores.strides[0] // scores.itemsize - columns)


def raveled(scores: Array) -> Array:
    """The memory from the first to the last of scores that lie by row, gaps and all."""
    rows, columns = scores.shape
    gap = row_gap(scores)
    if gap == 0:
        return scores.reshape(-1)
    size = (rows - 1) * (columns + gap) + columns
    return np.lib.stride_tricks.as_strided(scores, (size,), (scores.itemsize,), writeable=False)


def below_kth(scores: Array, k: int) -> Array:
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


def trim(found: Found, k: int) -> Found:
    """The k best of each row of what was found."""
    values, _, counts = found
    if counts.max(initial=0) <= k:
        return found
    padded = np.full((counts.size, counts.max()), -np.inf, values.dtype)
    padded[used_slots(padded, counts)] = values
    floor = below_kth(padded, k)
    return drop_ties(only(found, ~(values <= np.repeat(floor, counts))), k)


def drop_ties(found: Found, k: int) -> Found:
    """What was found without what rows have beyond k: the last of those equal to the least."""
    tied = np.flatnonzero(found.counts > k)
    if tied.size == 0:
        return found
    kept = np.ones(found.values.size, bool)
    for own in spans(found, tied):
        values = found.values[own]
        equal = np.isnan(values) if np.isnan(values).all() else values == np.nanmin(values)
        kept[own.start + np.flatnonzero(equal)[k - values.size :]] = False
    return only(found, kept)


def spans(found: Found, rows: Array) -> list[slice]:
    """Where the entries of some rows are."""
    ends = np.cumsum(found.counts)[rows].tolist()
    sizes = found.counts[rows].tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def only(found: Found, kept: Array) -> Found:
    """What was found, as far as `kept` (hits,) is True."""
    which = np.flatnonzero(kept)
    counts = np.diff(np.searchsorted(which, np.cumsum(found.counts)), prepend=0)
    return Found(found.values[which], found.indices[which], counts)


def pad(found: Found, slots: int | None = None) -> Selection:
    """What was found with as many slots in each row: those of the fullest row, if not given."""
    values, indices, counts = found
    slots = int(counts.max(initial=0)) if slots is None else slots
    filled = counts.astype(np.int32)
    if values.size == counts.size * slots:
        shape = (counts.size, slots)
        return Selection(values.reshape(shape), indices.reshape(shape), filled)
    padded = nothing(counts.size, slots, values.dtype)
    used = used_slots(padded.indices, counts)
    padded.values[used], padded.indices[used] = values, indices
    return padded._replace(counts=filled)


def nothing(rows: int, slots: int, dtype: Any) -> Selection:
    """Slots that are all unused."""
    return Selection(
        np.full((rows, slots), -np.inf, dtype),
        np.full((rows, slots), -1, np.int32),
        np.zeros(rows, np.int32),
    )


def used_slots(indices: Array, counts: Array) -> Any:
    """(C, K) bool: which slots are in use."""
    return np.arange(indices.shape[1]) < counts[:, None]


def take_slots(matrix: Array, indices: Array) -> Array:
    """(C, K): ``matrix[i, indices[i, j]]``, 0 in unused slots."""
    rows, columns = matrix.shape
    if indices.size == 0 or columns == 0:
        return np.zeros(indices.shape, matrix.dtype)
    matrix = by_row(matrix)
    starts = np.arange(rows) * (columns + row_gap(matrix))
    taken = raveled(matrix)[indices + starts[:, None]]
    if indices.min() < 0:
        taken[indices < 0] = 0
    return taken
