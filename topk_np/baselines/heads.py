"""Linear attention of all heads: what is given, checked, and cut into stacks of heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypedDict, Unpack

import numpy as np
from array_api_compat import device

from topk_np._namespace import (
    Array,
    add_at,
    cast,
    check_broadcasts,
    check_device,
    check_floats,
    check_integer,
    check_same,
    nbytes,
    plain,
    zeros,
)
from topk_np.baselines.features import FeatureMap, draw_projection
from topk_np.baselines.linear import LinearHeads, forward, make_heads
from topk_np.baselines.linear_bwd import backward
from topk_np.core.scores import output_of
from topk_np.options.call import Call
from topk_np.options.check import attention_call, check_known
from topk_np.options.chunk import Chunk, Heads, over_heads
from topk_np.options.masks import Mask
from topk_np.schedule.plan import Schedule, Workload, slices
from topk_np.schedule.threads import MOST_TASKS, WorkerTeam, check_workers

BLOCK = 128
PACK_ROWS = 512  # of short heads, which are taken together


class LinearOptions(TypedDict, total=False):
    """The options of `linear_call` by name; `performer_attention` describes them."""

    features: int | None
    seed: int | None
    projection: Array | None
    mask: Array | None
    is_causal: bool
    query_offset: int | None
    key_lengths: int | Array | None
    scale: float | None
    chunk_size: int | None
    workers: int | Executor | None


@dataclass(frozen=True, eq=False)
class LinearCall:
    """The checked inputs of one call."""

    attention: Call = field(repr=False)
    """Query, key and value, with the mask and positions."""
    is_causal: bool
    first: int
    """The position of the first query."""
    gate: Array | None
    """(*batch, N, 1)"""
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

    @property
    def mask(self) -> Mask | None:
        """The mask of keys; None if there is none."""
        masks = (option for option in self.attention.options if isinstance(option, Mask))
        return next(masks, None)

    def stacks(self) -> list[Chunk]:
        """All queries of the heads that are worked on together."""
        call, axis = self.attention, int(np.argmax(self.attention.batch.shape))
        rows = max(call.queries, call.keys, 1)
        batch, step = call.batch.shape, max(1, PACK_ROWS // rows)
        firsts = product(*(range(0, n, step if i == axis else 1) for i, n in enumerate(batch)))
        every = slice(0, call.queries)
        return [Chunk(Heads(i, axis, min(step, batch[axis] - i[axis])), every) for i in firsts]

    def heads(self, stack: Chunk) -> LinearHeads:
        """The matrices of some heads."""
        call = self.attention
        own = {name: stack.stack(array) for name, array in self.inputs.items()}
        return make_heads(
            call.xp,
            call.dtype,
            own["query"],
            own["key"],
            own["value"],
            self._allowed(stack),
            own.get("gate"),
            first=self.first if self.is_causal else call.keys,
            query_map=self.query_map,
            key_map=self.key_map,
            least=self.least,
            block=self.chunk_size,
        )

    def _allowed(self, stack: Chunk) -> Array | None:
        """(G, N, 1) bool: the keys of each head that are not masked; None if none is."""
        call, mask = self.attention, self.mask
        xp, shape, allowed = call.xp, (stack.heads.number, call.keys, 1), None
        if mask is not None and mask.pairs is not None:
            assert not callable(mask.pairs)
            keys = xp.matrix_transpose(stack.pairs(mask.pairs, slice(0, call.keys)))
            allowed = xp.broadcast_to(keys, shape)
        if mask is not None and mask.key_lengths is not None:
            lengths = over_heads(xp, stack.numbers(mask.key_lengths), call.key)
            place = xp.arange(call.keys, device=device(call.key))[None, :, None]
            within = xp.broadcast_to(place < lengths, shape)
            allowed = within if allowed is None else allowed & within
        return allowed

    def forward(self) -> Array:
        """The output (..., Q, V)."""
        call = self.attention
        out = output_of(call, int(call.value.shape[-1]), call.query.dtype)

        def work(stack: Chunk) -> None:
            for rows, values in forward(self.heads(stack)):
                out.put(Chunk(stack.heads, rows), cast(call.xp, values, call.query.dtype))

        with self._team() as team:
            team.map(work, self.stacks())
        return call.batch.unfold(call.xp, out.array)

    def backward(self, dout: Array) -> dict[str, Array]:
        """The gradients of the inputs by name, each in the shape and dtype of its input."""
        call = self.attention
        dout = call.batch.fold(call.xp, dout)
        totals = {
            name: zeros(call.xp, array.shape, call.dtype, array)
            for name, array in self.inputs.items()
        }

        def work(stack: Chunk) -> dict[str, Array]:
            return backward(self.heads(stack), stack.stack(dout))

        stacks = self.stacks()
        with self._team() as team:
            for wave in (stacks[part] for part in slices(len(stacks), MOST_TASKS)):
                for stack, grads in zip(wave, team.map(work, wave), strict=True):
                    # Heads may share an input, so these are added one after another.
                    for g, name in product(range(stack.heads.number), totals):
                        first, axis, _ = stack.heads
                        head = Heads((*first[:axis], first[axis] + g, *first[axis + 1 :]), axis, 1)
                        place = head.within(tuple(totals[name].shape[:-2]))
                        own = (*place, slice(None), slice(None))
                        totals[name] = add_at(totals[name], own, grads[name][g : g + 1, ...])
        xp, dtype = call.xp, call.query.dtype
        return {
            name: xp.reshape(cast(xp, total, dtype), call.shapes.get(name, total.shape))
            for name, total in totals.items()
        }

    def _team(self) -> WorkerTeam:
        work = Workload.of(self.attention)
        schedule = Schedule(1, 1, 1, 1, 0, work, self.attention.ops.THREADS)
        return WorkerTeam(schedule.threads(self.workers))


def linear_call(
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
) -> LinearCall:
    """The inputs and options of linear attention, checked; `make_map` is of projection, factor."""
    check_known(options, LinearOptions, "this attention")
    given: Callable[[str], Any] = options.get
    mask, chunk_size, is_causal = (
        given("mask"),
        given("chunk_size"),
        options.get("is_causal", False),
    )
    call = attention_call(
        query,
        key,
        value,
        joined=False,
        mask=mask,
        is_causal=is_causal,
        query_offset=given("query_offset"),
        key_lengths=given("key_lengths"),
        scale=given("scale"),
    )
    masks = [option for option in call.options if isinstance(option, Mask)]
    pairs = masks[0].pairs if masks else None
    if callable(pairs) or (pairs is not None and pairs.shape[-2] != 1):
        got = "a function" if callable(pairs) else f"shape {tuple(mask.shape)}"
        raise ValueError(
            "mask must be the same for all queries, an array (..., 1, N), since linear attention "
            f"sums over keys before it looks at a query; got {got}"
        )
    offset = given("query_offset")
    if getattr(offset, "shape", ()) != ():
        shape = tuple(offset.shape)
        raise ValueError(f"query_offset must be one integer here, got an array of shape {shape}")
    if gate is not None:
        gate = _check_gate(gate, call, is_causal)
    projection = given("projection")
    vectors = _projection(
        call, given("features"), given("seed"), projection, default_features, orthogonal
    )
    factor = math.sqrt(abs(call.scale))
    return LinearCall(
        call,
        is_causal,
        0 if offset is None else check_integer("query_offset", offset),
        gate,
        make_map(vectors, math.copysign(factor, call.scale)),
        make_map(vectors, factor),
        float(call.xp.finfo(call.dtype).smallest_normal) if least is None else least,
        BLOCK if chunk_size is None else check_integer("chunk_size", chunk_size, least=1),
        check_workers(given("workers")),
        nbytes(vectors) if projection is None else 0,
    )


def _check_gate(gate: Array, call: Call, is_causal: bool) -> Array:
    """The gate as (..., N, 1)."""
    check_floats({"query": call.query, "gate": gate})
    if not is_causal:
        raise ValueError("gate must be None without is_causal=True: it forgets what came before")
    if gate.ndim < 1:
        raise ValueError("gate must have shape (..., N), at least 1 axes, got ()")
    check_same("gate's last axis", gate.shape[-1], "the number of keys", call.keys)
    full = (*call.batch.lead, call.keys)
    check_broadcasts("gate", tuple(gate.shape), full, "(..., N)")
    xp = call.xp
    if bool(xp.any((gate < 0) | (gate > 1))):
        raise ValueError("gate must hold numbers from 0 to 1, got some outside")
    return call.batch.fold(xp, plain(gate)[..., None])


def _projection(
    call: Call,
    features: int | None,
    seed: int | None,
    projection: Array | None,
    default_features: int,
    orthogonal: bool,
) -> Array:
    """The random vectors (F, D) in the dtype that is computed in, drawn or given."""
    width = int(call.query.shape[-1])
    if projection is None:
        count = default_features if features is None else features
        drawn = draw_projection(
            count, width, seed=0 if seed is None else seed, orthogonal=orthogonal
        )
        dtype = np.float64 if call.dtype == call.xp.float64 else np.float32
        return call.xp.asarray(drawn.astype(dtype), device=device(call.query))
    for name, other in (("features", features), ("seed", seed)):
        if other is not None:
            raise ValueError(f"{name} must be None where a projection is given, got {other!r}")
    check_floats({"query": call.query, "projection": projection})
    if projection.ndim != 2 or projection.shape[0] < 1 or projection.shape[1] != width:
        raise ValueError(
            f"projection must have shape (features, D), here (at least 1, {width}), "
            f"got {tuple(projection.shape)}"
        )
    check_device("projection", projection, "query", call.query)
    return cast(call.xp, plain(projection), call.dtype)
