"""Biases, which are added to the scores: made for one chunk at a time, as are their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import device

from topk_np._namespace import (
    FLOATS,
    Array,
    array_namespace,
    cast,
    check_broadcasts,
    check_floats,
    dtype_name,
    plain,
)
from topk_np.kernels import Engine
from topk_np.options.chunk import Chunk, Option, Positions, Shape
from topk_np.options.masks import PairFunction, call_pair_function
from topk_np.options.relative import ALiBi, T5Bias, make_slope_bias, make_table_bias


@dataclass(frozen=True, eq=False)
class ArrayBias(Option):
    """An array that broadcasts to (*batch, Q, N)."""

    array: Array
    shape: Shape
    """The shape that the caller gave."""

    held_matrices = 1
    gradient = "bias"

    def scores(self, scores: Array, chunk: Chunk, keys: slice, ops: Engine) -> Array:
        """See `Option`."""
        bias = chunk.pairs(self.array, keys)
        scores += cast(array_namespace(scores), bias, scores.dtype)
        return scores

    def add_gradients(
        self, grads: Any, chunk: Chunk, dkept: Array, indices: Array, ops: Engine
    ) -> None:
        """See `Option`."""
        xp, (height, width) = array_namespace(dkept), self.array.shape[-2:]
        if width == 1:
            self._add_rows(grads, chunk, xp.sum(dkept, axis=2, keepdims=True), 0)
        elif height != 1:
            grads.add_slots("bias", chunk.rows.start, dkept, indices)
        else:
            where = {"dtype": dkept.dtype, "device": device(dkept)}
            ones = xp.ones((*dkept.shape[:2], 1), **where)
            total = xp.zeros((dkept.shape[0], width, 1), **where)
            total = ops.scatter_matmul(dkept, ops.pattern(indices, width), ones, total)
            grads.add_rows("bias", 0, xp.matrix_transpose(total))

    def add_dense_gradients(self, grads: Any, chunk: Chunk, keys: slice, dscores: Array) -> None:
        """See `Option`."""
        wide = self.array.shape[-1] != 1
        if not wide:
            dscores = array_namespace(dscores).sum(dscores, axis=2, keepdims=True)
        self._add_rows(grads, chunk, dscores, keys.start if wide else 0)

    def own_gradient(self, total: Array) -> Array:
        """See `Option`."""
        return array_namespace(total).reshape(total, self.shape)

    def _add_rows(self, grads: Any, chunk: Chunk, dscores: Array, column: int) -> None:
        """Add to the rows of the queries, or to the one row for all of them."""
        if self.array.shape[-2] != 1:
            grads.add_rows("bias", chunk.rows.start, dscores, column)
        else:
            summed = array_namespace(dscores).sum(dscores, axis=1, keepdims=True)
            grads.add_rows("bias", 0, summed, column)


@dataclass(frozen=True, eq=False)
class FunctionBias(Option):
    """A function of the positions of queries (C, 1) and keys (1, n)."""

    function: PairFunction
    positions: Positions

    score_matrices = 3  # perhaps 64-bit integers, and cast

    def scores(self, scores: Array, chunk: Chunk, keys: slice, ops: Engine) -> Array:
        """See `Option`."""
        result = call_pair_function("bias", self.function, self.positions, scores, chunk, keys)
        xp, kinds = array_namespace(result), ("integral", "real floating")
        if dtype_name(result) not in FLOATS and not xp.isdtype(result.dtype, kinds):
            raise TypeError(f"bias must return an array of numbers, got dtype {result.dtype}")
        scores += cast(xp, result, scores.dtype)
        return scores


def make_bias(query: Array, bias: Any, positions: Positions, lead: Shape, keys: int) -> Option:
    """
    Check the option `bias` of an attention call, whose leading axes broadcast to `lead`.

    Its arrays are still those of the caller, with at least two axes.
    """
    if isinstance(bias, type):
        raise TypeError(f"bias must be an instance, got the class {bias.__name__}")
    if isinstance(bias, ALiBi):
        return make_slope_bias(bias, positions, lead)
    if isinstance(bias, T5Bias):
        return make_table_bias(query, bias, positions, lead)
    if callable(bias):
        return FunctionBias(bias, positions)
    xp = check_floats({"query": query, "bias": bias})
    shape = tuple(bias.shape)
    check_broadcasts("bias", shape, (*lead, query.shape[-2], keys), "(..., Q, N)")
    return ArrayBias(xp.reshape(plain(bias), (1,) * (2 - len(shape)) + shape), shape)
