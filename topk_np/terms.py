"""What the queries of a chunk add to the gradient of one head of an input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from topk_np._namespace import Array, add_at, put
from topk_np.chunking import slices
from topk_np.kernels.masked import masked_matmul
from topk_np.rowsparse import add_slots, scatter_matmul

DENSE_BLOCK = 1024  # keys whose gradient is made at once


class Term(Protocol):
    """Something to be added to the gradient of one head of one input."""

    def add_to(self, total: Array, first: int) -> Array:
        """`total`, the gradient's rows from `first` on, with it added: in place, or a new array."""


@dataclass(frozen=True)
class RowsTerm:
    """Rows of a gradient from row `start` on, or a part of them from column `column` on."""

    rows: Array
    start: int
    column: int = 0

    def add_to(self, total: Array, first: int) -> Array:
        """See `Term`."""
        height, width = self.rows.shape
        rows = slice(self.start - first, self.start - first + height)
        return add_at(total, (rows, slice(self.column, self.column + width)), self.rows)


@dataclass(frozen=True)
class DenseTerm:
    """The transposed matrix of weights (C, n), where allowed, times `rows`; made as it is added."""

    weights: Array
    allowed: Array
    rows: Array
    start: int
    """The row of the gradient that the first column of weights belongs to."""

    def add_to(self, total: Array, first: int) -> Array:
        """See `Term`."""
        low = max(first, self.start)
        high = min(first + total.shape[0], self.start + self.weights.shape[1])
        for some in slices(max(high - low, 0), DENSE_BLOCK):
            keys = slice(low - self.start + some.start, low - self.start + some.stop)
            rows = slice(low - first + some.start, low - first + some.stop)
            product = masked_matmul(self.weights[:, keys].T, self.allowed[:, keys].T, self.rows)
            total = add_at(total, (rows, slice(None)), product)
        return total


@dataclass(frozen=True)
class SparseTerm:
    """The transposed row-sparse matrix (weights, indices, counts) times `rows`."""

    weights: Array
    indices: Array
    counts: Array
    rows: Array

    def add_to(self, total: Array, first: int) -> Array:
        """See `Term`."""
        return scatter_matmul(self.weights, self.indices, self.counts, self.rows, total, first)


@dataclass(frozen=True)
class SlotsTerm:
    """The row-sparse matrix (weights, indices, counts) itself, from row `start` on."""

    weights: Array
    indices: Array
    counts: Array
    start: int

    def add_to(self, total: Array, first: int) -> Array:
        """See `Term`."""
        rows = slice(self.start - first, self.start - first + self.weights.shape[0])
        own = total[rows, :]
        updated = add_slots(self.weights, self.indices, self.counts, own)
        return total if updated is own else put(total, (rows, slice(None)), updated)
