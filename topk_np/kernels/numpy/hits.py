"""
The entries of a matrix that exceed a floor of their row, found and kept one after the other.

Few do, so they are found eight at a time, as 64-bit words of the comparison's result, and kept
without gaps, since rows have different numbers of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import Array

# Entries of a row that are worth looking at together when k of them are wanted: 4 k and a few.
MOST_HITS, FEW = 4, 32
SORTED_BYTES = 1024  # of a row, up to which NumPy sorts it faster than it partitions it

_NO_HIT = np.uint64(0x0101010101010101)  # eight times True


class Hits(NamedTuple):
    """Entries of a matrix (R, n), row by row, ascending in each."""

    values: Array
    """(hits,)"""
    indices: Array
    """(hits,) int32 columns."""
    counts: Array
    """(R,) how many of each row."""


def by_row(scores: Array) -> Array:
    """`scores`, copied if a row of them is not in one piece, or rows are not in order."""
    row, column = scores.strides
    fits = column == scores.itemsize and row >= scores.shape[1] * column
    return scores if fits and row % column == 0 else np.ascontiguousarray(scores)


def at_most(scores: Array, floor: Array) -> Array:
    """Raveled: whether each score stays at or below its floor; True at the end, to fill a word."""
    below = np.empty(-(-scores.size // 8) * 8, bool)
    below[scores.size :] = True
    # A NaN is not less than or equal to anything, so it always counts as above.
    np.less_equal(scores, floor[:, None], out=below[: scores.size].reshape(scores.shape))
    return below


def positions(below: Array, most: int | None = None) -> Array | None:
    """The places where `at_most` is False, found eight at a time; None if more than `most`."""
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


def hits_at(scores: Array, flat: Array) -> Hits:
    """The entries at the ascending positions `flat` of the raveled scores, which lie by row."""
    rows, columns = scores.shape
    starts = np.arange(rows + 1) * columns
    counts = np.diff(np.searchsorted(flat, starts))
    indices = (flat - np.repeat(starts[:-1], counts)).astype(np.int32)
    gap = row_gap(scores)
    if gap:
        flat = flat + np.repeat(np.arange(rows) * gap, counts)
    return Hits(raveled(scores)[flat], indices, counts)


def row_gap(scores: Array) -> int:
    """The number of entries between the rows of scores."""
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


def kth_largest(scores: Array, k: int) -> Array:
    """(R,): the k-th largest of each row, NaN above all; the rows are put in another order."""
    kth = scores.shape[1] - k
    # Either puts NaN above +inf, as we do.
    if scores.shape[1] * scores.itemsize <= SORTED_BYTES:
        scores.sort(axis=1)
    else:
        scores.partition(kth, axis=1)
    return scores[:, kth].copy()  # a view would hold all of them


def just_below(largest: Array) -> Array:
    """The floors that these values just exceed; of NaN +inf, which nothing but NaN exceeds."""
    below = np.nextafter(largest, -np.inf)
    if not below.min() > 0:
        # What is just below 0 is 0 as well where the processor takes subnormal numbers for 0: it is
        # a setting of the thread, which others may have made (XLA makes it where it calls back).
        below[(below == 0) & (largest == 0)] = -np.finfo(largest.dtype).tiny
        below[np.isnan(below)] = np.inf
    return below


def trim(hits: Hits, k: int) -> Hits:
    """The k best of each row."""
    values, _, counts = hits
    if counts.max(initial=0) <= k:
        return hits
    padded = np.full((counts.size, counts.max()), -np.inf, values.dtype)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = values
    floor = just_below(kth_largest(padded, k))
    return drop_ties(only(hits, ~(values <= np.repeat(floor, counts))), k)


def drop_ties(hits: Hits, k: int) -> Hits:
    """`hits` without what rows have beyond k: the last of those equal to the least."""
    tied = np.flatnonzero(hits.counts > k)
    if tied.size == 0:
        return hits
    kept = np.ones(hits.values.size, bool)
    for own in spans(hits, tied):
        values = hits.values[own]
        equal = np.isnan(values) if np.isnan(values).all() else values == np.nanmin(values)
        kept[own.start + np.flatnonzero(equal)[k - values.size :]] = False
    return only(hits, kept)


def spans(hits: Hits, rows: Array) -> list[slice]:
    """The places of the entries of some rows."""
    ends = np.cumsum(hits.counts)[rows].tolist()
    sizes = hits.counts[rows].tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def only(hits: Hits, kept: Array) -> Hits:
    """The hits for which `kept` (hits,) is True."""
    which = np.flatnonzero(kept)
    counts = np.diff(np.searchsorted(which, np.cumsum(hits.counts)), prepend=0)
    return Hits(hits.values[which], hits.indices[which], counts)


def in_slots(hits: Hits, slots: int | None = None) -> tuple[Array, Array]:
    """Values and indices (R, slots), by default with the slots that the fullest row needs."""
    values, indices, counts = hits
    slots = int(counts.max(initial=0)) if slots is None else slots
    shape = counts.size, slots
    if values.size == counts.size * slots:
        return values.reshape(shape), indices.reshape(shape)
    padded = no_slots(*shape, values.dtype)
    used = np.arange(slots) < counts[:, None]
    padded[0][used], padded[1][used] = values, indices
    return padded


def no_slots(rows: int, slots: int, dtype: Any) -> tuple[Array, Array]:
    """Values and indices of slots that are all unused."""
    return np.full((rows, slots), -np.inf, dtype), np.full((rows, slots), -1, np.int32)
