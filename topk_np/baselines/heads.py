"""Linear attention of all heads: what is given, checked, and cut into packs of heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Unpack

import numpy as np
from array_api_compat import device

from topk_np._namespace import (
    Array,
    Filled,
    Namespace,
    add_at,
    cast,
    check_broadcasts,
    check_device,
    check_floats,
    check_integer,
    check_same,
    nbytes,
    plain,
)
from topk_np.baselines.features import FeatureMap
from topk_np.baselines.linear import LinearHeads, forward, make_heads
from topk_np.baselines.linear_bwd import backward
from topk_np.baselines.options import LinearOptions
from topk_np.baselines.projection import draw_projection
from topk_np.chunking import slices
from topk_np.inputs import attention_problem
from topk_np.options import check_known
from topk_np.positions import Head, of_head, of_lead, own_place
from topk_np.problem import Problem
from topk_np.workers import MOST_TASKS, check_workers

BLOCK = 128
PACK_ROWS = 512  # of short heads, which are taken together


@dataclass(frozen=True)
class LinearProblem:
    """The checked inputs of one call; arrays as the caller gave them."""

    attention: Problem = field(repr=False)
    """Query, key and value, with the mask and positions."""
    is_causal: bool
    gate: Array | None
    """(..., N, 1)"""
    query_map: FeatureMap = field(repr=False)
    key_map: FeatureMap = field(repr=False)
    least: float
    """The smallest denominator that is divided by."""
    chunk_size: int
    """Positions in a block."""
    workers: int | Executor = field(repr=False)
    nbytes: int = 0
    """What the random vectors take, where they were drawn."""

    @property
    def inputs(self) -> dict[str, Array]:
        """The arrays that have a gradient."""
        given = {**self.attention.inputs, "gate": self.gate}
        return {name: array for name, array in given.items() if array is not None}

    def packs(self) -> list[list[Head]]:
        """The heads that are worked on together."""
        problem = self.attention
        rows = max(problem.queries, problem.keys, 1)
        every = problem.heads()
        return [every[pack] for pack in slices(len(every), max(1, PACK_ROWS // rows))]

    def heads(self, pack: list[Head]) -> LinearHeads:
        """The matrices of some heads."""
        xp, offset = self.attention.xp, self.attention.positions.offset
        assert isinstance(offset, int)
        own = {
            name: _stacked(xp, [of_head(array, head) for head in pack])
            for name, array in self.inputs.items()
        }
        allowed = [self._allowed(head) for head in pack]
        return make_heads(
            xp,
            self.attention.dtype,
            own["query"],
            own["key"],
            own["value"],
            None if allowed[0] is None else _stacked(xp, allowed),
            own.get("gate"),
            first=offset if self.is_causal else self.attention.keys,
            query_map=self.query_map,
            key_map=self.key_map,
            least=self.least,
            block=self.chunk_size,
        )

    def _allowed(self, head: Head) -> Array | None:
        """(N, 1) bool: the keys of a head that are not masked; None if none is."""
        problem, mask = self.attention, self.attention.mask
        xp, keys, allowed = problem.xp, problem.keys, None
        if mask is not None and mask.pairs is not None:
            row = xp.matrix_transpose(of_head(mask.pairs, head))
            allowed = xp.broadcast_to(row, (keys, 1))
        if mask is not None and mask.key_lengths is not None:
            place = xp.arange(keys, device=device(problem.key))[:, None]
            within = place < of_lead(mask.key_lengths, head)
            allowed = within if allowed is None else allowed & within
        return allowed

    def forward(self) -> Array:
        """The output (..., Q, V)."""
        problem = self.attention
        out = Filled(problem.zeros(*problem.out_shape, dtype=problem.query.dtype))

        def work(pack: list[Head]) -> None:
            for rows, values in forward(self.heads(pack)):
                values = cast(problem.xp, values, problem.query.dtype)
                for i, head in enumerate(pack):
                    out[(*head, rows, slice(None))] = values[i, ...]

        with problem.crew(self.workers) as crew:
            crew.map(work, self.packs())
        return out.array

    def backward(self, dout: Array) -> dict[str, Array]:
        """The gradients of the inputs by name, each in the shape and dtype of its input."""
        problem = self.attention
        totals = {name: problem.zeros(*array.shape) for name, array in self.inputs.items()}

        def work(pack: list[Head]) -> dict[str, Array]:
            douts = _stacked(problem.xp, [of_head(dout, head) for head in pack])
            return backward(self.heads(pack), douts)

        packs = self.packs()
        with problem.crew(self.workers) as crew:
            for wave in (packs[part] for part in slices(len(packs), MOST_TASKS)):
                for pack, grads in zip(wave, crew.map(work, wave), strict=True):
                    for (i, head), name in product(enumerate(pack), totals):
                        # Heads may share an input, so these are added one after another.
                        lead = own_place(totals[name].shape[:-2], head)
                        place = (*lead, slice(None), slice(None))
                        totals[name] = add_at(totals[name], place, grads[name][i, ...])
        return {
            name: cast(problem.xp, total, problem.query.dtype) for name, total in totals.items()
        }


def _stacked(xp: Namespace, matrices: list[Array]) -> Array:
    """Matrices with a first axis for all; a view of a single one."""
    return matrices[0][None, ...] if len(matrices) == 1 else xp.stack(matrices, axis=0)


def linear_problem(
    query: Array,
    key: Array,
    value: Array,
    make_map: Callable[[Array, float], FeatureMap],
    *,
    default_features: int,
    orthogonal: bool,
    least: float | None,
    gate: Array | None = None,
    **options: Unpack[LinearOptions],
) -> LinearProblem:
    """The inputs and options of linear attention, checked; `make_map` is of projection, factor."""
    check_known(options, LinearOptions, "this attention")
    given: Callable[[str], Any] = options.get
    mask, chunk_size, is_causal = (
        given("mask"),
        given("chunk_size"),
        options.get("is_causal", False),
    )
    problem = attention_problem(
        query,
        key,
        value,
        mask=mask,
        is_causal=is_causal,
        query_offset=given("query_offset"),
        key_lengths=given("key_lengths"),
        scale=given("scale"),
    )
    pairs = None if problem.mask is None else problem.mask.pairs
    if callable(pairs) or (pairs is not None and pairs.shape[-2] != 1):
        got = "a function" if callable(pairs) else f"shape {tuple(mask.shape)}"
        raise ValueError(
            "mask must be the same for all queries, an array (..., 1, N), since linear attention "
            f"sums over keys before it looks at a query; got {got}"
        )
    if not isinstance(problem.positions.offset, int):
        shape = problem.positions.offset.shape
        raise ValueError(f"query_offset must be one integer here, got an array of shape {shape}")
    if gate is not None:
        gate = _check_gate(gate, problem, is_causal)
    projection = given("projection")
    vectors = _projection(
        problem, given("features"), given("seed"), projection, default_features, orthogonal
    )
    factor = math.sqrt(abs(problem.scale))
    return LinearProblem(
        problem,
        is_causal,
        gate,
        make_map(vectors, math.copysign(factor, problem.scale)),
        make_map(vectors, factor),
        float(problem.xp.finfo(problem.dtype).smallest_normal) if least is None else least,
        BLOCK if chunk_size is None else check_integer("chunk_size", chunk_size, least=1),
        check_workers(given("workers")),
        nbytes(vectors) if projection is None else 0,
    )


def _check_gate(gate: Array, problem: Problem, is_causal: bool) -> Array:
    """The gate as (..., N, 1)."""
    check_floats({"query": problem.query, "gate": gate})
    if not is_causal:
        raise ValueError("gate must be None without is_causal=True: it forgets what came before")
    if gate.ndim < 1:
        raise ValueError("gate must have shape (..., N), at least 1 axes, got ()")
    check_same("gate's last axis", gate.shape[-1], "the number of keys", problem.keys)
    full = (*problem.batch, problem.keys)
    check_broadcasts("gate", tuple(gate.shape), full, "(..., N)")
    xp = problem.xp
    if bool(xp.any((gate < 0) | (gate > 1))):
        raise ValueError("gate must hold numbers from 0 to 1, got some outside")
    return plain(gate)[..., None]


def _projection(
    problem: Problem,
    features: int | None,
    seed: int | None,
    projection: Array | None,
    default_features: int,
    orthogonal: bool,
) -> Array:
    """The random vectors (F, D) in the dtype that is computed in, drawn or given."""
    width = int(problem.query.shape[-1])
    if projection is None:
        count = default_features if features is None else features
        drawn = draw_projection(
            count, width, seed=0 if seed is None else seed, orthogonal=orthogonal
        )
        dtype = np.float64 if problem.dtype == problem.xp.float64 else np.float32
        return problem.xp.asarray(drawn.astype(dtype), device=device(problem.query))
    for name, other in (("features", features), ("seed", seed)):
        if other is not None:
            raise ValueError(f"{name} must be None where a projection is given, got {other!r}")
    check_floats({"query": problem.query, "projection": projection})
    if projection.ndim != 2 or projection.shape[0] < 1 or projection.shape[1] != width:
        raise ValueError(
            f"projection must have shape (features, D), here (at least 1, {width}), "
            f"got {tuple(projection.shape)}"
        )
    check_device("projection", projection, "query", problem.query)
    return cast(problem.xp, plain(projection), problem.dtype)
