"""What a call will hold, before it is made."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from topk_np._namespace import (
    Array,
    check_choice,
    check_flag,
    check_integer,
    check_same,
    dtype_name,
)
from topk_np.chunking import Chunks, Sizes, plan_chunks
from topk_np.inputs import SELECTS
from topk_np.kernels import is_portable
from topk_np.workers import Crew, check_workers

ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Plan:
    """How a top-k call is cut, and the bytes it holds beyond its inputs."""

    chunk_size: int
    """Queries of a chunk in the forward pass."""
    key_block: int
    """Keys whose scores are held at once; the k best are merged block by block."""
    backward_chunk_size: int
    """Queries of a chunk in the backward pass."""
    out_bytes: int
    """The output."""
    residual_bytes: int
    """Scores and indices kept for the backward pass."""
    grad_bytes: int
    """Gradients of the three inputs."""
    forward_scratch: int
    """What the forward pass holds besides its output and the residuals."""
    backward_scratch: int
    """What the backward pass holds besides the gradients; for half precision their wider sums."""

    @property
    def forward_peak(self) -> int:
        """Most bytes held at once in the forward pass."""
        return self.out_bytes + self.residual_bytes + self.forward_scratch

    @property
    def backward_peak(self) -> int:
        """Most bytes held at once in the backward pass, what the forward pass left included."""
        return self.out_bytes + self.residual_bytes + self.grad_bytes + self.backward_scratch

    @property
    def peak(self) -> int:
        """Most bytes held at once beyond the inputs."""
        return max(self.forward_peak, self.backward_peak)


def plan(
    query: Array | tuple[int, ...],
    key: Array | tuple[int, ...],
    value: Array | tuple[int, ...],
    /,
    *,
    k: int,
    dtype: str | None = None,
    mask: bool = False,
    gate: bool = False,
    select: str = "score",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
) -> Plan:
    """
    How `topk_attention` or `topk_ffn` will cut its work, and what it will hold.

    Parameters
    ----------
    query : array (..., Q, D) or tuple of int
        The first array of the call, or its shape, which stands for a NumPy array; for the
        feed-forward layer tokens (T, D).
    key : array (..., N, D) or tuple of int
        The second; for the feed-forward layer keys (F, D).
    value : array (..., N, V) or tuple of int
        The third; for the feed-forward layer values (F, V).
    k : int
        Keys or units to keep, at least 1.
    dtype : {"float16", "bfloat16", "float32", "float64"}
        Dtype of the inputs; by default that of the arrays, and of shapes float32.
    mask : bool, default False
        Whether there is a mask, causal or other.
    gate : bool, default False
        Whether the units are gated.
    select : {"score", "activation"}
        As for `topk_ffn`.
    chunk_size : int, optional
        As for the call.
    memory_budget : int, optional
        As for the call.
    workers : int or concurrent.futures.Executor, optional
        As for the call, by default one a core. What is held grows with them, within the
        memory budget.

    Returns
    -------
    Plan
        Sizes of chunks and blocks, and predicted bytes. On NumPy they are within a quarter of
        what is measured, where they are not tiny.

    Raises
    ------
    TypeError
        If a number is not an integer, or an argument neither an array nor a shape.
    ValueError
        If shapes do not fit or `memory_budget` is less than one query needs; the error says how
        much that is.

    Notes
    -----
    What further options hold is not counted: with `p` let `k` be `max_k`, with `always_keep` add
    its keys to `k`. Dropout, a `T5Bias`, a bias function and `p` make the call's chunks smaller.
    Where heads are short, the plan is that of attention without options that go head by head;
    others, and feed-forward layers, may hold twice as much there.

    Examples
    --------
    >>> from topk_np import plan
    >>> shape = (4, 65536, 64)
    >>> sizes = plan(shape, shape, shape, k=64, workers=2)
    >>> sizes.chunk_size, sizes.key_block, sizes.residual_bytes // 2**20
    (512, 2064, 128)
    """
    given = {"query": query, "key": key, "value": value}
    shapes = [_shape(name, array) for name, array in given.items()]
    if dtype is None:
        dtype = dtype_name(query) if hasattr(query, "dtype") else "float32"
    k = check_integer("k", k, least=1)
    check_choice("dtype", dtype, tuple(ITEMSIZES))
    check_same("key's last axis", shapes[1][-1], "query's", shapes[0][-1])
    check_same("value's second last axis", shapes[2][-2], "key's", shapes[1][-2])
    try:
        batch = np.broadcast_shapes(*(shape[:-2] for shape in shapes))
    except ValueError:
        raise ValueError(
            f"the leading axes of query, key and value must broadcast, got {shapes}"
        ) from None
    (queries, width), (keys, value_width) = shapes[0][-2:], shapes[2][-2:]
    gated = check_flag("gate", gate)
    by_score = check_choice("select", select, SELECTS) == "score"
    stored, heads = ITEMSIZES[dtype], math.prod(batch)
    shared = any(shape[:-2] != batch for shape in shapes)
    on_numpy = isinstance(query, (tuple, np.ndarray)) and not is_portable(np)
    sizes = Sizes(
        heads=heads,
        queries=queries,
        keys=keys,
        width=width + value_width,
        slots=min(k, keys),
        itemsize=max(stored, 4),
        score_matrices=1 + 4 * (not by_score),
        narrow=stored < 4,
        copied=stored < 4,
        masked=check_flag("mask", mask),
        on_device=array_api_compat.is_cupy_array(query),
        stackable=on_numpy and by_score and not gated and not (stored < 4 and shared),
    )
    chunks = plan_chunks(sizes, chunk_size, memory_budget)
    crew = Crew(check_workers(workers))
    threads, wave = (min(most, sizes.tasks) for most in (crew.threads, crew.wave))

    summed = [*shapes, *shapes[1:2][:gated]]  # the gate has the shape of the keys
    grads = sum(map(math.prod, summed))
    if chunks.short:
        copied = [shape for shape in shapes if sizes.narrow or shape[:-2] != batch]
        copies = sum(math.prod(shape[-2:]) for shape in copied) * sizes.itemsize
        forward, backward = _short_scratch(sizes, chunks, threads, copies)
    else:
        forward, backward = _scratch(sizes, chunks, threads, wave)
        if sizes.narrow:
            backward += _wide_sums(summed, chunks, wave) * sizes.itemsize
    return Plan(
        chunks.queries,
        chunks.keys,
        chunks.backward_queries,
        out_bytes=heads * queries * value_width * stored,
        residual_bytes=heads * queries * sizes.slots * ((1 + gated) * sizes.itemsize + 4),
        grad_bytes=grads * stored,
        forward_scratch=forward,
        backward_scratch=backward,
    )


def _scratch(sizes: Sizes, chunks: Chunks, threads: int, wave: int) -> tuple[int, int]:
    """What the tasks of the forward and of the backward pass hold at once."""
    stacked = sizes.stacked_bytes(chunks.heads) // 2
    rows, backward_rows = chunks.heads * chunks.queries, chunks.heads * chunks.backward_queries
    held = sizes.held_bytes(backward_rows) + stacked
    busy = sizes.backward_bytes(backward_rows) - sizes.held_bytes(backward_rows) + stacked
    forward = sizes.forward_bytes(rows, chunks.keys) + stacked // 2
    return (
        _at_once(sizes, chunks, chunks.queries, threads) * forward,
        _at_once(sizes, chunks, chunks.backward_queries, wave) * held
        + _at_once(sizes, chunks, chunks.backward_queries, threads) * busy,
    )


def _short_scratch(sizes: Sizes, chunks: Chunks, threads: int, copies: int) -> tuple[int, int]:
    """The same for stacks of short heads, of each of which `copies` bytes are copied."""
    copies *= chunks.heads
    busy, held = (_at_once(sizes, chunks, sizes.queries, most) for most in (threads, sizes.tasks))
    added = 0 if sizes.narrow else held * copies  # where heads share an input; halves never do
    return (
        busy * (sizes.short_forward_bytes(chunks.heads) + copies),
        busy * (sizes.short_backward_bytes(chunks.heads) + copies) + added,
    )


def _at_once(sizes: Sizes, chunks: Chunks, rows: int, most: int) -> int:
    """How many tasks of so many rows of each head there are at once, of at most so many."""
    return min(most, -(-sizes.heads // chunks.heads) * -(-sizes.queries // rows))


def _wide_sums(shapes: list[tuple[int, ...]], chunks: Chunks, tasks: int) -> int:
    """Numbers in the sums of those heads that a wave of tasks adds to, and those not finished."""
    tasks_of_head = -(-shapes[0][-2] // chunks.backward_queries)
    heads = -(-tasks * chunks.heads // max(tasks_of_head, 1)) + 1
    return sum(min(heads, math.prod(shape[:-2])) * math.prod(shape[-2:]) for shape in shapes)


def _shape(name: str, given: Any) -> tuple[int, ...]:
    shape = getattr(given, "shape", given)
    if not isinstance(shape, tuple):
        raise TypeError(f"{name} must be an array or a shape, got {type(given).__name__}")
    if len(shape) < 2:
        raise ValueError(f"{name} must have at least 2 axes, got shape {shape}")
    return tuple(check_integer(f"a length of {name}", length, least=0) for length in shape)
