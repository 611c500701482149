"""
The k largest of each short row, marked in place. Definition: `topk_np.kernels.portable.select`.

Where rows are short, sorting all of a row costs less than looking for a floor: one to two
nanoseconds a score, as NumPy sorts short rows in the registers of the processor.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from topk_np._namespace import Array

SORTED_BYTES = 1024  # of a row, beyond which partitioning it is quicker


class Marked(NamedTuple):
    """The best of each row of scores (R, n)."""

    hits: Array
    """(R, n) bool: which they are."""
    largest: Array
    """(R, 1) the largest score of each row; 0 where nothing is marked."""
    most: float
    """The largest of these."""


def mark(scores: Array, counts: int | Array) -> Marked | None:
    """
    Mark the `counts` largest scores of each row, one number for all or (R,): lower index first.

    None if a row has fewer scores above -inf than it should, or one that is NaN or +inf.
    """
    rows, columns = scores.shape
    if isinstance(counts, int):
        first, wanted = columns - counts, counts * rows
        if columns * scores.itemsize <= SORTED_BYTES:
            ordered = np.sort(scores, axis=1)  # NaN comes last
            largest = ordered[:, -1:].copy()
        else:
            ordered = np.partition(scores, first, axis=1)
            largest = ordered[:, first:].max(axis=1, keepdims=True)
        floor = ordered[:, first, None].copy()
    else:
        ordered = np.sort(scores, axis=1)
        largest = ordered[:, -1:].copy()
        first = np.minimum(columns - counts, columns - 1)[:, None]
        floor, wanted = np.take_along_axis(ordered, first, axis=1), int(counts.sum())
        empty = counts == 0
        floor[empty], largest[empty] = np.inf, 0
    most = float(largest.max())
    if not (floor.min() > -np.inf and most < np.inf):  # not with NaN either
        return None
    hits = scores >= floor
    if np.count_nonzero(hits) > wanted:
        _drop_ties(scores, floor, hits, counts)
    return Marked(hits, largest, most)


def _drop_ties(scores: Array, floor: Array, hits: Array, counts: int | Array) -> None:
    """Take back the last hits of each row that has too many: those equal to its floor."""
    spare = np.count_nonzero(hits, axis=1) - counts
    rows = np.flatnonzero(spare)
    equal = scores[rows] == floor[rows]
    from_last = np.cumsum(equal[:, ::-1], axis=1, dtype=np.int32)[:, ::-1]
    hits[rows] &= ~(equal & (from_last <= spare[rows, None]))
