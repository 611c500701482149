"""Stacks of heads as primitives may be given them, and what stacks of row-sparse matrices are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.kernels.engines import Engine
from tests.strategies import seeds
from topk_np._namespace import array_namespace

Rng = np.random.Generator
LAYOUTS = ("plain", "transposed", "heads apart", "gaps", "part", "backwards", "shared")
layouts = st.sampled_from(LAYOUTS)
precisions = st.sampled_from(["float32", "float64"])


def lay_out(engine: Engine, stack: np.ndarray, layout: str) -> Any:
    """
    A stack (G, M, N) for an engine, in a memory layout.

    "shared" stands for heads that are the same memory, and has what the first head holds.
    """
    if layout == "transposed":
        memory = engine.given(np.ascontiguousarray(stack.mT))
        return array_namespace(memory).permute_dims(memory, (0, 2, 1))
    if layout == "heads apart":
        memory = engine.given(np.ascontiguousarray(stack.swapaxes(0, 1)))
        return array_namespace(memory).permute_dims(memory, (1, 0, 2))
    if layout == "gaps":
        return engine.given(np.repeat(stack, 2, axis=2))[:, :, ::2]
    if layout == "part":
        return engine.given(surrounded(stack))[1:-1, 1:-1, 1:-1]
    if layout == "backwards":
        return engine.given(np.ascontiguousarray(stack[:, ::-1]))[:, ::-1, :]
    if layout == "shared":
        memory = engine.given(np.ascontiguousarray(stack[:1]))
        return array_namespace(memory).broadcast_to(memory, stack.shape)
    return engine.given(np.ascontiguousarray(stack))


def surrounded(stack: np.ndarray) -> np.ndarray:
    """A stack with one element more on all sides, of a value that it would show to read."""
    return np.pad(stack, 1, constant_values=math.nan if stack.dtype.kind == "f" else 77)


def as_laid_out(stack: np.ndarray, layout: str) -> np.ndarray:
    """What `lay_out` makes of a stack."""
    return np.broadcast_to(stack[:1], stack.shape) if layout == "shared" else stack


@dataclass(frozen=True)
class Sparse:
    """Row-sparse matrices (G, C, N), drawn; NaN where weights must not be read."""

    weights: np.ndarray
    """(G, C, K) float64."""
    indices: np.ndarray
    """(G, C, K) int32."""
    keys: int

    @property
    def used(self) -> np.ndarray:
        return np.asarray(self.indices >= 0)

    def slots(self) -> Iterator[tuple[int, int, int, int]]:
        """Head, row, slot and index of all slots in use."""
        for g, i, j in zip(*map(np.ndarray.tolist, np.nonzero(self.used)), strict=True):
            yield g, i, j, int(self.indices[g, i, j])

    @property
    def dense(self) -> np.ndarray:
        """(G, C, N): the matrices themselves."""
        matrices = np.zeros((*self.indices.shape[:2], self.keys))
        for g, i, j, key in self.slots():
            matrices[g, i, key] = self.weights[g, i, j]
        return matrices

    def values(self, rng: Rng, width: int, layout: str = "plain") -> np.ndarray:
        """Values (G, N, V), NaN where no index leads."""
        named = np.zeros((len(self.indices), self.keys), bool)
        for g, _, _, key in self.slots():
            named[g, key] = True
        if layout == "shared":
            named[:] = named.any(axis=0)
        values = rng.standard_normal((len(named), self.keys, width))
        return as_laid_out(np.where(named[..., None], values, np.nan), layout)

    def rows(self, rng: Rng, width: int, layout: str = "plain") -> np.ndarray:
        """Rows (G, C, V), NaN where there are no slots."""
        taking_part = np.asarray(self.used.any(axis=2))
        if layout == "shared":
            taking_part[:] = taking_part.any(axis=0)
        rows = rng.standard_normal((*self.indices.shape[:2], width))
        return as_laid_out(np.where(taking_part[..., None], rows, np.nan), layout)


@st.composite
def sparse_GCN(draw: st.DrawFn) -> Sparse:
    """Row-sparse matrices with all, some or none of the slots in use, also more than keys."""
    heads, rows, keys = draw(st.integers(1, 3)), draw(st.integers(0, 4)), draw(st.integers(0, 6))
    slots = draw(st.integers(0, keys + 2))
    rng = np.random.default_rng(draw(seeds))
    counts = rng.integers(0, min(slots, keys), (heads, rows), endpoint=True)
    if draw(st.booleans()):
        counts[:] = min(slots, keys)
    indices = np.full((heads, rows, slots), -1, np.int32)
    for place, count in np.ndenumerate(counts):
        indices[place][:count] = np.sort(rng.choice(keys, count, replace=False))
    weights = np.where(indices < 0, np.nan, rng.standard_normal(indices.shape))
    return Sparse(weights, indices, keys)
