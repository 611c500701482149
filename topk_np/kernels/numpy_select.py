"""
The k largest of each row, on NumPy. Definitions: `topk_np.kernels.portable`.

Selection never sorts a row of scores. A floor that at least k scores of a row exceed is cheap to
find, and few others exceed it: see `topk_np.kernels.numpy_found`.
"""

from __future__ import annotations

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels import Selection
from topk_np.kernels.numpy_found import (
    Found,
    below_kth,
    by_row,
    drop_ties,
    missed,
    most_found,
    nothing,
    pad,
    places,
    take,
    trim,
)

GROUPS_PER_SLOT = 4  # groups whose maxima give the floor, for each of the k to be kept
LEAST_GROUPS = 256  # where few are to be kept
LEAST_GROUP = 4  # with smaller groups than this, partitioning the whole row is quicker
DENSE_HITS = 10  # rows shorter than this many k have a hit in most words of eight scores


def select(scores: Array, k: int) -> Selection:
    """The k largest of each row: lower index first among equals, NaN above all, -inf never."""
    k = min(k, scores.shape[1])
    if scores.shape[0] == 0 or k == 0:
        return nothing(scores.shape[0], k, scores.dtype)
    scores = by_row(scores)
    groups = GROUPS_PER_SLOT * k
    size = scores.shape[1] // groups
    if size < LEAST_GROUP:
        short = _select_short(scores, k)
        if short is None:
            return select_by_row(scores, k, np.full(scores.shape[0], -np.inf, scores.dtype))
        return pad(short, k)
    floor = _group_floor(scores, groups, size, k)
    found = _find(scores, k, floor)
    if found is None:
        return select_by_row(scores, k, floor)
    return pad(trim(found, k), k)


def select_above(scores: Array, k: int, floor: Array) -> Selection:
    """The k largest of each row among what exceeds its `floor` (C,), in few slots."""
    k = min(k, scores.shape[1])
    if scores.shape[0] == 0 or k == 0:
        return nothing(scores.shape[0], k, scores.dtype)
    scores = by_row(scores)
    found = _find(scores, k, floor)
    if found is None:  # the floor lies too low for this block
        return select_by_row(scores, k, floor)
    return pad(trim(found, k))


def floor_of(scores: Array, k: int) -> Array:
    """(C,): what k entries of each row exceed and few more, where so many are above -inf."""
    groups = max(GROUPS_PER_SLOT * k, LEAST_GROUPS)
    size = scores.shape[1] // groups
    if size < LEAST_GROUP:
        return below_kth(scores.copy(), k)
    return _group_floor(scores, groups, size, k)


def _find(scores: Array, k: int, floor: Array) -> Found | None:
    """All that exceeds the floor of its row; None if that is many times k, in sum or in a row."""
    flat = places(missed(scores, floor), most=scores.shape[0] * most_found(k) // 2)
    if flat is None:
        return None
    found = take(scores, flat)
    return None if found.counts.max() > most_found(k) else found


def _select_short(scores: Array, k: int) -> Found | None:
    """The k largest of each row, by the row's k-th largest value; None if many equal that."""
    below = missed(scores, below_kth(scores.copy(), k))
    if below.size - np.count_nonzero(below) > scores.shape[0] * most_found(k):
        return None
    sparse = scores.shape[1] > DENSE_HITS * k
    flat = places(below) if sparse else np.flatnonzero(~below[: scores.size])
    return drop_ties(take(scores, flat), k)


def _group_floor(scores: Array, groups: int, size: int, k: int) -> Array:
    """(C,): a value in each row that at least k entries exceed, where so many are above -inf."""
    # The k-th largest of the maxima of groups is at most the k-th largest of all.
    whole = groups * size
    largest = scores[:, :whole].reshape(-1, size, groups).max(axis=1)
    # The last columns as well: where scores rise, these are the best.
    rest = scores[:, whole:]
    first = largest[:, : rest.shape[1]]
    np.maximum(first, rest, out=first)
    return below_kth(largest, k)


def select_by_row(scores: Array, k: int, floor: Array) -> Selection:
    """The k largest of each row above its floor, a row at a time: where many scores are equal."""
    result = nothing(scores.shape[0], k, scores.dtype)
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
