"""What is added to the scores: made for one chunk at a time, as is its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import device

from topk_np._namespace import (
    FLOATS,
    Array,
    array_namespace,
    check_broadcasts,
    check_floats,
    dtype_name,
    plain,
)
from topk_np.masking import PairFunction, ask, of_chunk
from topk_np.positions import Head, Positions
from topk_np.relative import (
    ALiBi,
    SlopeBias,
    T5Bias,
    TableBias,
    make_slope_bias,
    make_table_bias,
)
from topk_np.rowsparse import scatter_matmul
from topk_np.terms import RowsTerm, SlotsTerm, Term


@dataclass(frozen=True)
class ArrayBias:
    """An array that broadcasts to (..., Q, N)."""

    array: Array
    shape: tuple[int, ...]
    """As the caller gave it: `array` has at least two axes."""

    def values(self, scores: Array, head: Head, rows: slice, keys: slice) -> Array:
        """(C or 1, n or 1): what is to be added to some scores."""
        return of_chunk(self.array, head, rows, keys)

    def slots_term(
        self, head: Head, rows: slice, dscores: Array, indices: Array, counts: Array
    ) -> Term:
        """The gradient of `array`, from that of the kept scores (C, K)."""
        xp = array_namespace(dscores)
        (height, width), place = self.array.shape[-2:], device(dscores)
        if width == 1:
            rowwise = xp.sum(dscores, axis=1, keepdims=True)
            return _summed_rows(rowwise, height, rows)
        if height > 1:
            return SlotsTerm(dscores, indices, counts, rows.start)
        ones = xp.ones((dscores.shape[0], 1), dtype=dscores.dtype, device=place)
        total = xp.zeros((width, 1), dtype=dscores.dtype, device=place)
        return RowsTerm(scatter_matmul(dscores, indices, counts, ones, total).T, 0)

    def dense_term(self, head: Head, rows: slice, keys: slice, dscores: Array) -> Term:
        """The gradient of `array`, from that of the scores (C, n)."""
        height, width = self.array.shape[-2:]
        if width == 1:
            dscores = array_namespace(dscores).sum(dscores, axis=1, keepdims=True)
        return _summed_rows(dscores, height, rows, keys.start if width > 1 else 0)

    def grads(self, total: Array) -> Array:
        """The gradient in the shape that the caller gave."""
        return array_namespace(total).reshape(total, self.shape)


def _summed_rows(dscores: Array, height: int, rows: slice, first: int = 0) -> RowsTerm:
    """The gradient of a matrix that has a row for each query, or one for all."""
    if height == 1:
        summed = array_namespace(dscores).sum(dscores, axis=0, keepdims=True)
        return RowsTerm(summed, 0, first)
    return RowsTerm(dscores, rows.start, first)


@dataclass(frozen=True)
class FunctionBias:
    """A function of the positions of queries (C, 1) and keys (1, n)."""

    function: PairFunction
    positions: Positions

    def values(self, scores: Array, head: Head, rows: slice, keys: slice) -> Array:
        """(C or 1, n or 1): what is to be added to some scores."""
        said = ask("bias", self.function, scores, self.positions.first(head, rows), keys)
        xp, kinds = array_namespace(said), ("integral", "real floating")
        if dtype_name(said) not in FLOATS and not xp.isdtype(said.dtype, kinds):
            raise TypeError(f"bias must return an array of numbers, got dtype {said.dtype}")
        return said


Learned = ArrayBias | TableBias
Bias = Learned | SlopeBias | FunctionBias


def make_bias(query: Array, bias: Any, positions: Positions, batch: Head, keys: int) -> Bias | None:
    """Check the option `bias` of an attention call."""
    if bias is None:
        return None
    if isinstance(bias, type):
        raise TypeError(f"bias must be an instance, got the class {bias.__name__}")
    if isinstance(bias, ALiBi):
        return make_slope_bias(bias, positions, batch)
    if isinstance(bias, T5Bias):
        return make_table_bias(query, bias, positions, batch)
    if callable(bias):
        return FunctionBias(bias, positions)
    xp = check_floats({"query": query, "bias": bias})
    shape = tuple(bias.shape)
    check_broadcasts("bias", shape, (*batch, query.shape[-2], keys), "(..., Q, N)")
    return ArrayBias(xp.reshape(plain(bias), (1,) * (2 - len(shape)) + shape), shape)
