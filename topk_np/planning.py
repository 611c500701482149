"""The memory that a call will hold, before it is made."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from topk_np._namespace import Array, check_choice, check_flag, check_integer, dtype_name
from topk_np.options.check import SELECTS, attention_call, ffn_call
from topk_np.schedule.plan import Schedule, Workload, schedule_call
from topk_np.schedule.threads import WorkerTeam, check_workers

ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Plan:
    """The pieces that a top-k call is cut into, and the bytes it holds beyond its inputs."""

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
    """Memory of the forward pass besides its output and the residuals."""
    backward_scratch: int
    """Memory of the backward pass besides the gradients; for half precision also wider sums."""

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
    Predict how `topk_attention` or `topk_ffn` cuts its work, and the memory that it holds.

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
    check_choice("dtype", dtype, tuple(ITEMSIZES))
    check_choice("select", select, SELECTS)
    gated, masked = check_flag("gate", gate), check_flag("mask", mask)
    arrays = [
        _stand_in(array, shape, dtype) for array, shape in zip(given.values(), shapes, strict=True)
    ]
    attention = not gated and select == "score"
    if attention:
        call = attention_call(arrays[0], arrays[1], arrays[2], (k, None, None))
    else:
        unit = arrays[1] if gated else None
        call = ffn_call(arrays[0], arrays[1], arrays[2], (k,), "relu", None, None, unit, select)
    work = Workload.of(call)
    work = replace(work, masked=masked, copied=work.narrow)
    schedule = schedule_call(call, chunk_size, memory_budget, work)
    team = WorkerTeam(schedule.threads(check_workers(workers)))
    threads, in_flight = (min(most, work.tasks) for most in (team.threads, team.in_flight))
    if not work.shared and schedule.backward_chunk_size >= work.queries:
        in_flight = threads  # nothing waits to be added up

    forward, backward = _scratch(work, schedule, threads, in_flight)
    summed = [array.shape for array in call.inputs.values()]
    if work.narrow:
        backward += _wide_sums(work, schedule, summed, in_flight) * work.itemsize
    stored, rows = ITEMSIZES[dtype], work.heads * work.queries
    return Plan(
        schedule.chunk_size,
        schedule.key_block,
        schedule.backward_chunk_size,
        out_bytes=rows * shapes[2][-1] * stored,
        residual_bytes=rows * work.slots * ((1 + gated) * work.itemsize + 4),
        grad_bytes=sum(map(math.prod, summed)) * stored,
        forward_scratch=forward,
        backward_scratch=backward,
    )


def _stand_in(given: Any, shape: tuple[int, ...], dtype: str) -> Array:
    """The array itself, or one of that shape and dtype that takes no memory."""
    if hasattr(given, "dtype") and dtype_name(given) == dtype:
        return given
    stand_in = "float16" if ITEMSIZES[dtype] == 2 else dtype  # bfloat16 is no dtype of NumPy's own
    return np.broadcast_to(np.zeros((), stand_in), shape)


def _scratch(work: Workload, schedule: Schedule, threads: int, in_flight: int) -> tuple[int, int]:
    """Scratch that the tasks of the forward and of the backward pass hold at once."""
    stack, heads = work.stack_bytes(schedule.heads), schedule.heads
    rows = heads * schedule.backward_chunk_size
    held = work.held_bytes(rows)
    busy = work.backward_bytes(rows) - held + stack
    forward = work.forward_bytes(heads * schedule.chunk_size, schedule.key_block) + stack // 4
    tasks, backward_tasks = len(schedule.chunks), len(schedule.backward_chunks)
    return (
        min(threads, tasks) * forward,
        min(in_flight, backward_tasks) * held + min(threads, backward_tasks) * busy,
    )


def _wide_sums(
    work: Workload, schedule: Schedule, shapes: list[tuple[int, ...]], tasks: int
) -> int:
    """Numbers in the sums of those heads that a wave of tasks adds to, and those not finished."""
    tasks_of_head = -(-work.queries // schedule.backward_chunk_size)
    heads = -(-tasks * schedule.heads // max(tasks_of_head, 1)) + 1
    return sum(min(heads, math.prod(shape[:-2])) * math.prod(shape[-2:]) for shape in shapes)


def _shape(name: str, given: Any) -> tuple[int, ...]:
    shape = getattr(given, "shape", given)
    if not isinstance(shape, tuple):
        raise TypeError(f"{name} must be an array or a shape, got {type(given).__name__}")
    if len(shape) < 2:
        raise ValueError(f"{name} must have at least 2 axes, got shape {shape}")
    return tuple(check_integer(f"a length of {name}", length, least=0) for length in shape)
