"""
The k largest of each row. Definition: `topk_np.kernels.portable.select`.

Selection never sorts a long row of scores. A floor that at least k scores of a row exceed is cheap
to find, and few others exceed it: see `topk_np.kernels.numpy.hits`.
"""

from __future__ import annotations

import math

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels import Selection, tuning
from topk_np.kernels.numpy.hits import (
    FEW,
    MOST_HITS,
    Hits,
    at_most,
    by_row,
    hits_at,
    in_slots,
    just_below,
    kth_largest,
    no_slots,
    positions,
    raveled,
    row_gap,
    trim,
)


def select(scores: Array, k: int) -> Selection:
    """The k largest of each row: lower index first among equals, NaN above all, -inf never."""
    *lead, columns = scores.shape
    values, indices = select_rows(scores.reshape(math.prod(lead), columns), min(k, columns))
    shape = (*lead, values.shape[1])
    return Selection(values.reshape(shape), indices.reshape(shape))


def select_rows(scores: Array, k: int) -> tuple[Array, Array]:
    """Values and indices (R, k) of the k largest of each row of a matrix, at least k long."""
    if scores.shape[0] == 0 or k == 0:
        return no_slots(scores.shape[0], k, scores.dtype)
    scores = by_row(scores)
    groups = tuning.current.groups_per_slot * k
    size = scores.shape[1] // groups
    if size < tuning.current.least_group:
        return _select_short(scores, k)
    floor = _group_floor(scores, groups, size, k)
    most = MOST_HITS * k + FEW
    flat = positions(at_most(scores, floor), most=scores.shape[0] * most // 2)
    if flat is not None:
        hits = hits_at(scores, flat)
        if hits.counts.max() <= most:
            return in_slots(trim(hits, k), k)
    return select_by_row(scores, k, floor)  # many are equal


def floor_of(scores: Array, k: int) -> Array:
    """(R,): what k entries of each row exceed and few more, if k of them are above -inf."""
    if scores.shape[0] == 0:
        return np.empty(0, scores.dtype)
    groups = max(tuning.current.groups_per_slot * k, tuning.current.least_groups)
    size = scores.shape[1] // groups
    if size < tuning.current.least_group:
        return just_below(kth_largest(scores.copy(), k))
    return _group_floor(scores, groups, size, k)


def _group_floor(scores: Array, groups: int, size: int, k: int) -> Array:
    """(R,): a value in each row that at least k entries exceed, if k of them are above -inf."""
    # The k-th largest of the maxima of groups is at most the k-th largest of all.
    whole = groups * size
    largest = scores[:, :whole].reshape(-1, size, groups).max(axis=1)
    # The last columns as well: where scores rise, these are the best.
    rest = scores[:, whole:]
    first = largest[:, : rest.shape[1]]
    np.maximum(first, rest, out=first)
    return just_below(kth_largest(largest, k))


def _select_short(scores: Array, k: int) -> tuple[Array, Array]:
    """The k largest of each row, by the row's k-th largest value."""
    rows, columns = scores.shape
    kth = kth_largest(scores.copy(), k)
    fewer = np.any(kth == -np.inf)  # than k are allowed in some row
    if np.isnan(scores.max()):
        hit = ~(scores <= just_below(kth)[:, None])
    else:
        hit = scores >= (np.maximum(kth, np.finfo(kth.dtype).min) if fewer else kth)[:, None]
    hits = np.count_nonzero(hit)
    if hits > rows * (MOST_HITS * k + FEW):  # many equal the k-th
        return select_by_row(scores, k, np.full(rows, -np.inf, scores.dtype))
    counts: Array = None  # of each row, where they are not all k
    if fewer or hits > rows * k:
        counts = np.count_nonzero(hit, axis=1)
        if counts.max() > k:
            _drop_ties(scores, kth, hit, counts - k)
            counts = np.minimum(counts, k)
        counts = counts if fewer else None
    flat = np.flatnonzero(hit)
    integer = np.int64 if scores.size >= 2**31 else np.int32
    starts = np.arange(0, scores.size, columns, dtype=integer)
    indices: Array = flat.astype(integer)
    if counts is None:
        indices = indices.reshape(rows, k)
        indices -= starts[:, None]
    else:
        indices -= np.repeat(starts, counts)
    gap = row_gap(scores)
    if gap:
        flat += np.repeat(np.arange(rows) * gap, k if counts is None else counts)
    values = np.take(raveled(scores), flat, mode="clip")
    indices = indices.astype(np.int32, copy=False)
    if counts is not None:
        return in_slots(Hits(values, indices, counts), k)
    return values.reshape(rows, k), indices


def _drop_ties(scores: Array, kth: Array, hit: Array, spare: Array) -> None:
    """Take back the last hits of each row that has some to `spare`: of those equal to its k-th."""
    some = np.flatnonzero(spare > 0)
    own, kth = hit[some], kth[some, None]
    equal = own & ((scores[some] == kth) | np.isnan(kth))
    from_last = np.cumsum(equal[:, ::-1], axis=1, dtype=np.int32)[:, ::-1]
    hit[some] = own & ~(equal & (from_last <= spare[some, None]))


def select_by_row(scores: Array, k: int, floor: Array) -> tuple[Array, Array]:
    """The k largest of each row above its floor, a row at a time: where many scores are equal."""
    values, indices = no_slots(scores.shape[0], k, scores.dtype)
    for i, row in enumerate(scores):
        kth = np.partition(row, row.size - k)[row.size - k]
        nan = np.isnan(row)
        above = np.flatnonzero(nan | (row > kth))[:k]
        equal = np.flatnonzero(row == kth)[: k - above.size]
        chosen = np.sort(np.concatenate([above, equal]))
        chosen = chosen[~(row[chosen] <= floor[i])]
        values[i, : chosen.size] = row[chosen]
        indices[i, : chosen.size] = chosen
    return values, indices
