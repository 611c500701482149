"""
The best that were found in blocks of columns, without slots. See `topk_np.kernels.finds`.

Rows have different numbers of hits in a block: with slots for the most of them, half of the slots
would be unused. So hits are put in order of rows only when they are merged.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels.numpy_csr import sparsetools
from topk_np.kernels.numpy_found import (
    Found,
    by_row,
    few_found,
    missed,
    most_found,
    only,
    pad,
    places,
    raveled,
    row_gap,
    spans,
    take_slots,
    trim,
)
from topk_np.kernels.numpy_select import floor_of, select, select_by_row


class Finds:
    """The k best of each row of the blocks that were seen so far."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._rows = 0
        self._best: list[Array] = []  # indices, values and others, (C, K), of the last merge
        self._hits: list[list[Array]] = []  # blocks of [rows, indices, values, *others], all (h,)

    @property
    def waiting(self) -> float:
        """Hits of a row that were found since the last merge."""
        return float(sum(rows.size for rows, *_ in self._hits) / max(self._rows, 1))

    def add(self, scores: Array, start: int, floor: Array | None, *others: Array) -> None:
        """See `topk_np.kernels.finds`."""
        self._rows = scores.shape[0]
        if floor is None:
            chosen = select(scores, self._k)
        else:
            scores = by_row(scores)
            flat = places(missed(scores, floor), most=self._rows * few_found(self._k))
            if flat is None:  # scores that rise from block to block, as of nearer and nearer keys
                floor = np.maximum(floor, floor_of(scores, self._k))
                flat = places(missed(scores, floor), most=self._rows * most_found(self._k) // 2)
            if flat is not None:
                self._hits.append(_hits(flat, start, scores, *others))
                return
            chosen = select_by_row(scores, min(self._k, scores.shape[1]), floor)
        indices = chosen.indices
        kept = [chosen.values, *(take_slots(other, indices) for other in others)]
        best = [np.where(indices < 0, indices, indices + start) if start else indices, *kept]
        if self._best or self._hits:
            self._hits.append(_ravel(best))
        else:
            self._best = best

    def merge(self) -> list[Array]:
        """See `topk_np.kernels.finds`."""
        if self._hits:
            hits = [_ravel(self._best), *self._hits] if self._best else self._hits
            kinds = [[*arrays] for arrays in zip(*hits, strict=True)]
            self._best, self._hits, hits = [], [], []
            rows, values = _joined(kinds[0]), _joined(kinds[2])
            found = _in_order(rows, values, self._rows)
            del rows
            best = pad(trim(_shorten(found, self._k), self._k))
            del found, values
            indices = _take(_joined(kinds[1]), best.indices, -1)
            others = [_take(_joined(kind), best.indices, 0) for kind in kinds[3:]]
            self._best = [indices, best.values, *others]
        indices, scores, *others = self._best
        return [scores, indices, *others]


def _hits(flat: Array, start: int, *matrices: Array) -> list[Array]:
    """Rows, indices from `start` on, and entries of matrices (C, n) at their raveled places."""
    columns = matrices[0].shape[1]
    if raveled(matrices[0]).size < 2**31:
        flat = flat.astype(np.int32)  # twice as quick
    rows = flat // flat.dtype.type(columns)
    indices = flat - rows * flat.dtype.type(columns)
    entries = []
    for matrix in map(by_row, matrices):
        gap = row_gap(matrix)
        entries.append(raveled(matrix)[flat + rows * flat.dtype.type(gap) if gap else flat])
    indices += flat.dtype.type(start)
    return [rows.astype(np.int32, copy=False), indices.astype(np.int32, copy=False), *entries]


def _joined(arrays: list[Array]) -> Array:
    """One after the other; let go of, since memory for all of them twice would be much."""
    joined = np.concatenate(arrays)
    arrays.clear()
    return joined


def _ravel(slots: list[Array]) -> list[Array]:
    """Rows, and what is in the used slots of indices, values and others (C, K)."""
    used = slots[0] >= 0
    return [np.nonzero(used)[0].astype(np.int32), *(array[used] for array in slots)]


def _in_order(rows: Array, values: Array, size: int) -> Found:
    """The values in order of their rows, of which there are `size`; as index the place each had."""
    ends = np.empty(size + 1, np.int32)
    order, ordered = np.empty_like(rows), np.empty_like(values)
    which = np.arange(rows.size, dtype=np.int32)
    sparsetools().coo_tocsr(size, 1, rows.size, rows, which, values, ends, order, ordered)
    return Found(ordered, order, np.diff(ends))


def _shorten(found: Found, k: int) -> Found:
    """What was found, but of rows with many times k only the k best, so that no slots are many."""
    long = np.flatnonzero(found.counts > most_found(k))
    if long.size == 0:
        return found
    kept = np.ones(found.values.size, bool)
    for own in spans(found, long):
        kept[own] = False
        kept[own.start + select(found.values[None, own], k).indices[0]] = True
    return only(found, kept)


def _take(array: Array, places: Array, unused: Any) -> Array:
    """(C, K): ``array[places]``, but `unused` where a place is -1."""
    taken = array[places]
    if places.size and places.min() < 0:
        taken[places < 0] = unused
    return taken
