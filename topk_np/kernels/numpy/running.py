"""
The k best of rows that come in blocks of columns. Definition: `portable.RunningTopK`.

Once k are known, only what exceeds the least of them can matter (an equal score further right
loses): a floor for the blocks to come. Rows have different numbers of hits in a block; with slots
for the most of them half would be unused, so hits are put in order of rows only as they are merged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels.numpy.hits import (
    FEW,
    MOST_HITS,
    Hits,
    at_most,
    by_row,
    in_slots,
    only,
    positions,
    raveled,
    row_gap,
    spans,
    trim,
)
from topk_np.kernels.numpy.products import sparsetools
from topk_np.kernels.numpy.select import floor_of, select_by_row, select_rows

MERGED = 1.5  # times k hits wait in a row until they are: later costs less, earlier prunes more


@dataclass
class RunningTopK:
    """The k best of each row of scores that come in blocks of columns, from left to right."""

    k: int
    columns: int
    """The length of a row."""
    _lead: tuple[int, ...] = field(init=False, default=())
    _floor: Array | None = field(init=False, default=None)
    _best: list[Array] = field(init=False, default_factory=list)
    """Indices, values and others (R, K) of the last merge."""
    _hits: list[list[Array]] = field(init=False, default_factory=list)
    """Hits of the blocks since: [rows, indices, values, *others], all (h,)."""

    def add(self, scores: Array, start: int, *others: Array) -> None:
        """Take in a block (G, C, n) from column `start` on; `others` are kept where it is."""
        self._lead, columns = tuple(scores.shape[:-1]), scores.shape[-1]
        matrices = [array.reshape(math.prod(self._lead), columns) for array in (scores, *others)]
        if self._floor is None and columns >= self.columns:  # the only block
            self._best = _select(matrices, self.k, start)
            return
        scores, *rest = map(by_row, matrices)
        if self._floor is None:
            self._floor = floor_of(scores, min(self.k, columns))
            if columns < self.k:
                self._floor[...] = -np.inf
        elif self._waiting >= MERGED * self.k:
            self._raise_floor()
        rows, floor = scores.shape[0], self._floor
        flat = positions(at_most(scores, floor), most=rows * (3 * self.k // 2 + FEW // 2))
        if flat is None:  # scores that rise from block to block, as of nearer and nearer keys
            floor = np.maximum(floor, floor_of(scores, min(self.k, columns)))
            flat = positions(at_most(scores, floor), most=rows * (MOST_HITS * self.k + FEW) // 2)
        if flat is None:
            self._hits.append(_ravel(_select([scores, *rest], self.k, start, floor)))
        else:
            self._hits.append(_hits(flat, start, scores, *rest))

    def result(self, slots: int) -> list[Array]:
        """Values, int32 indices and `others` of the k best, (G, C, slots); 0 in unused slots."""
        if self._hits:
            self._merge()
        indices, values, *others = self._best
        made = []
        for array, fill in zip((values, indices, *others), (-np.inf, -1, *[0] * 9), strict=False):
            missing = slots - array.shape[1]
            if missing > 0:
                array = np.pad(array, ((0, 0), (0, missing)), constant_values=fill)
            made.append(array.reshape(*self._lead, array.shape[1]))
        return made

    @property
    def _waiting(self) -> float:
        """Hits of a row that were found since the last merge."""
        return float(sum(rows.size for rows, *_ in self._hits) / max(1, math.prod(self._lead)))

    def _raise_floor(self) -> None:
        """Set what later scores must exceed: the k-th largest so far, -inf if there are fewer."""
        if self._hits:
            self._merge()
        values = self._best[1]
        if values.shape[1] < self.k:
            self._floor = np.full(values.shape[0], -np.inf, values.dtype)
        else:
            self._floor = np.where(np.isnan(values), np.inf, values).min(axis=1)

    def _merge(self) -> None:
        """Keep the k best of what was the best and what was found since."""
        hits = [*([_ravel(self._best)] if self._best else []), *self._hits]
        kinds = [[*arrays] for arrays in zip(*hits, strict=True)]
        self._best, self._hits, hits = [], [], []
        rows, values = _joined(kinds[0]), _joined(kinds[2])
        found = _in_order(rows, values, math.prod(self._lead))
        del rows
        ordered, places = in_slots(trim(_shorten(found, self.k), self.k))
        del found, values
        indices = _take(_joined(kinds[1]), places, -1)
        self._best = [indices, ordered, *(_take(_joined(kind), places, 0) for kind in kinds[3:])]


def _select(matrices: list[Array], k: int, start: int, floor: Array | None = None) -> list[Array]:
    """Indices from `start` on, and entries of matrices (R, n) where the first has its k best."""
    scores = matrices[0]
    k = min(k, scores.shape[1])
    chosen = select_rows(scores, k) if floor is None else select_by_row(scores, k, floor)
    indices = chosen[1]
    row = np.arange(scores.shape[0])[:, None]
    others = [np.where(indices < 0, 0, other[row, indices]) for other in matrices[1:]]
    return [np.where(indices < 0, -1, indices + start) if start else indices, chosen[0], *others]


def _hits(flat: Array, start: int, *matrices: Array) -> list[Array]:
    """Rows, indices from `start` on, and entries of matrices (R, n) at their raveled positions."""
    columns = matrices[0].shape[1]
    if raveled(matrices[0]).size < 2**31:
        flat = flat.astype(np.int32)  # twice as quick
    rows = flat // flat.dtype.type(columns)
    indices = flat - rows * flat.dtype.type(columns)
    entries = []
    for matrix in matrices:
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
    """Rows, and what is in the used slots of indices, values and others (R, K)."""
    used = slots[0] >= 0
    return [np.nonzero(used)[0].astype(np.int32), *(array[used] for array in slots)]


def _in_order(rows: Array, values: Array, size: int) -> Hits:
    """The values in order of their rows, of which there are `size`; as index the place each had."""
    ends = np.empty(size + 1, np.int32)
    order, ordered = np.empty_like(rows), np.empty_like(values)
    which = np.arange(rows.size, dtype=np.int32)
    sparsetools().coo_tocsr(size, 1, rows.size, rows, which, values, ends, order, ordered)
    return Hits(ordered, order, np.diff(ends))


def _shorten(hits: Hits, k: int) -> Hits:
    """`hits`, but of rows with many times k only the k best, so that no slots are many."""
    long = np.flatnonzero(hits.counts > (MOST_HITS * k + FEW))
    if long.size == 0:
        return hits
    kept = np.ones(hits.values.size, bool)
    for own in spans(hits, long):
        kept[own] = False
        kept[own.start + select_rows(hits.values[None, own], k)[1][0]] = True
    return only(hits, kept)


def _take(array: Array, places: Array, unused: Any) -> Array:
    """(R, K): ``array[places]``, but `unused` where a place is -1."""
    taken = array[places]
    if places.size and places.min() < 0:
        taken[places < 0] = unused
    return taken
