"""The cutting of a call into chunks of queries and blocks of keys, to fit a memory budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np

from topk_np._namespace import check_integer
from topk_np.kernels import tuning
from topk_np.options.call import Call
from topk_np.options.chunk import Chunk, Heads
from topk_np.schedule.threads import MOST_TASKS

DEFAULT_MEMORY_BUDGET = 64 * 2**20  # bytes of scratch, shared by all workers


@dataclass(frozen=True)
class Workload:
    """The sizes that a schedule depends on: shapes alone, never the machine."""

    batch: tuple[int, ...]
    """The lengths of the batch axes."""
    queries: int
    keys: int
    width: int
    """D + V"""
    slots: int
    """K = min(k, N)"""
    itemsize: int
    """Bytes of a number that is computed with."""
    score_matrices: int = 1
    """Matrices of scores held at once."""
    slot_matrices: int = 0
    """Further numbers for each kept slot that an option holds at once."""
    held_matrices: int = 0
    """Further numbers for each kept slot that are held until their gradient is added up."""
    masked: bool = False
    """True if some keys may be hidden from some queries."""
    narrow: bool = False
    """True if inputs are half precision, so that chunks of them are cast."""
    copied: bool = False
    """True if keys are copied block by block: cast, or laid out as BLAS needs them."""
    whole_rows: bool = False
    """True if a query's scores are needed all at once."""
    shared: bool = False
    """True if heads share an input, so that what they add to its gradient has to wait."""
    whole_budget: bool = False
    """True if one task at a time gets the whole budget, as on a device."""

    @classmethod
    def of(cls, call: Call) -> Workload:
        """The workload of a call."""
        options, p = call.options, None if call.rule is None else call.rule.p
        narrow = call.dtype != call.query.dtype
        copied = narrow
        for matrix in (call.key, call.gate):
            if isinstance(matrix, np.ndarray) and matrix.size:
                # BLAS reads a matrix as it lies in memory if one axis has no gaps.
                apart = matrix.strides[-2:]
                copied = copied or matrix.itemsize not in apart or 0 in apart
        sorted_again = 2 if p is not None or call.always is not None else 0
        exponentials = 2 if p is not None else 0
        return cls(
            call.batch.shape,
            call.queries,
            call.keys,
            int(call.query.shape[-1] + call.value.shape[-1]),
            call.slots,
            8 if call.dtype == call.xp.float64 else 4,
            1
            + 4 * call.ranks_weights
            + max([exponentials, *(option.score_matrices for option in options)]),
            max([sorted_again, *(option.slot_matrices for option in options)]),
            sum(option.held_matrices for option in options),
            call.always is not None or any(option.masks for option in options),
            narrow,
            copied,
            call.ranks_weights and not call.activation.by_element,
            any(array.shape[:-2] != call.batch.shape for array in call.inputs.values()),
            call.ops.WHOLE_BUDGET,
        )

    @property
    def heads(self) -> int:
        """The number of heads."""
        return math.prod(self.batch)

    @property
    def axis(self) -> int:
        """The batch axis along which heads are taken together: the longest."""
        return int(np.argmax(self.batch))

    @property
    def scores(self) -> int:
        """The number of scores."""
        return self.heads * self.queries * self.keys

    @property
    def tasks(self) -> int:
        """Tasks that may run at once, and share the budget."""
        return 1 if self.whole_budget else MOST_TASKS

    @property
    def short(self) -> bool:
        """Return whether rows are so short that what is kept is written out, 0 elsewhere."""
        limits = tuning.current
        few = 0 < self.keys <= min(limits.short_keys, limits.short_share * self.slots)
        return few and self.queries * self.keys <= limits.short_scores

    def forward_bytes(self, rows: int, keys: int) -> int:
        """Scratch of one task of the forward pass that has this number of rows in all its heads."""
        block = keys * self.score_matrices * self.itemsize
        hidden = 2 * keys * self.masked
        found = 1.25 * keys + min(keys, 3 * self.slots) * (3 * self.itemsize + 12) + 32
        if self.short:
            found = keys * (self.itemsize + 2) + self.slots * (self.itemsize + 20) + 32
        kept = self.slots * ((4 + self.slot_matrices) * self.itemsize + 12)
        kept += self.width * self.itemsize + keys * self.itemsize * self.short
        selecting, adding = rows * max(hidden, found), rows * kept + self._gathered_bytes(rows)
        copies = keys * self.width * self.itemsize * self.copied
        return int(rows * block + max(selecting, adding)) + copies

    def backward_bytes(self, rows: int) -> int:
        """Scratch of one task of the backward pass."""
        products = rows * self.slots * ((3 + self.slot_matrices) * self.itemsize + 12)
        products += rows * self.slots * 24 * self.whole_budget  # where indices are sorted
        if self.short:  # sampled places, and matrices that are written out
            products = rows * self.slots * ((2 + self.slot_matrices) * self.itemsize + 8)
            products += rows * (2 + self.shared) * self.keys * self.itemsize
        return self.held_bytes(rows) + products + self._gathered_bytes(rows)

    def held_bytes(self, rows: int) -> int:
        """The part of `backward_bytes` that is held until gradients are added up."""
        width = self.width if self.narrow else self.width // 2
        return rows * self.itemsize * ((2 + self.held_matrices) * self.slots + width)

    def stack_bytes(self, heads: int) -> int:
        """Scratch of several heads: what they add to a gradient, copies of keys and values."""
        if heads == 1:
            return 0
        return (self.shared + 2 * self.narrow) * heads * self.keys * self.width * self.itemsize

    def task_bytes(self, rows: int, keys: int, backward: int, heads: int) -> int:
        """Scratch of a task of either pass, by its rows of each head and its heads."""
        forward = self.forward_bytes(heads * rows, keys)
        return max(forward, self.backward_bytes(heads * backward)) + self.stack_bytes(heads)

    @property
    def dense_row_bytes(self) -> int:
        """Scratch of one query of a task of the dense function, whose slots are all keys."""
        matrices = tuning.current.dense_matrices + self.score_matrices - 1 + self.slot_matrices
        return matrices * max(self.keys, 1) * self.itemsize

    def _gathered_bytes(self, rows: int) -> int:
        row = self.slots * self.width // 2 * self.itemsize
        if self.short:  # nothing is gathered
            return row
        return max(row, min(tuning.current.gathered_bytes, rows * row))


@dataclass(frozen=True)
class Schedule:
    """The pieces of a call: chunks of queries, blocks of keys, stacks of heads."""

    chunk_size: int
    """Queries of a chunk in the forward pass."""
    key_block: int
    """Keys whose scores are held at once; the k best are merged block by block."""
    backward_chunk_size: int
    """Queries of a chunk in the backward pass, which holds no scores."""
    heads: int
    """Heads of a chunk, where they are short."""
    task_bytes: int
    """Scratch that one task holds at most, of `Workload.tasks` that may run at once."""
    workload: Workload
    threaded: bool = True
    """True if the engine can use several threads."""

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The chunks of the forward pass."""
        return self._chunks(self.chunk_size)

    @cached_property
    def backward_chunks(self) -> list[Chunk]:
        """The chunks of the backward pass."""
        return self._chunks(self.backward_chunk_size)

    def threads(self, workers: int | Executor) -> int | Executor:
        """The threads for this call: one where more are not worth starting."""
        worth = self.threaded and self.workload.scores >= tuning.current.worth_threads
        return workers if worth else 1

    def _chunks(self, rows: int) -> list[Chunk]:
        batch, axis = self.workload.batch, self.workload.axis
        steps = [self.heads if i == axis else 1 for i in range(len(batch))]
        firsts = product(*(range(0, n, step) for n, step in zip(batch, steps, strict=True)))
        heads = [Heads(i, axis, min(self.heads, batch[axis] - i[axis])) for i in firsts]
        return [Chunk(*own) for own in product(heads, slices(self.workload.queries, rows))]


def schedule_call(
    call: Call, chunk_size: Any = None, memory_budget: Any = None, work: Workload | None = None
) -> Schedule:
    """
    Cut a call so that the tasks that run at once hold at most `memory_budget` bytes of scratch.

    `chunk_size` is an upper limit to the queries of a chunk; `work` is the call's own workload
    unless given.
    """
    budget = DEFAULT_MEMORY_BUDGET
    if memory_budget is not None:
        budget = check_integer("memory_budget", memory_budget, least=1)
    if chunk_size is not None:
        chunk_size = check_integer("chunk_size", chunk_size, least=1)
    work = Workload.of(call) if work is None else work
    return schedule_work(work, chunk_size, budget, call.ops.THREADS, tuning.current)


@lru_cache(256)
def schedule_work(
    work: Workload, chunk_size: int | None, budget: int, threaded: bool, limits: tuning.Tuning
) -> Schedule:
    """Schedule a workload: see `schedule_call`."""
    share = budget // work.tasks
    keys = max(work.keys, 1)
    least_keys = keys if work.whole_rows else min(keys, max(limits.least_block, 4 * work.slots))
    least = max(work.forward_bytes(1, least_keys), work.backward_bytes(1))
    if least > share:
        raise ValueError(
            f"memory_budget must be at least {least * work.tasks} bytes here, got {budget}"
        )

    even = -(-work.heads * work.queries // work.tasks)  # a share for each of the tasks
    most, most_backward = limits.most_queries, limits.most_backward_queries
    fewest, scores = limits.fewest_queries // 2, limits.block_scores
    if work.whole_budget:
        most = most_backward = limits.most_device_queries
        fewest, scores = limits.fewest_device_queries, limits.device_scores
    rows = min(most, max(limits.fewest_queries, even)) if chunk_size is None else chunk_size
    rows = max(1, min(rows, work.queries))
    long_block = limits.long_block * work.slots
    block = max(scores // rows, long_block) + limits.few_more
    block = keys if work.whole_rows else min(keys, block)
    while work.forward_bytes(rows, block) > share:
        # Short blocks make selection dear, short chunks the matrix product: give way by turns.
        long = block > long_block and not work.whole_budget
        if block > least_keys and (rows <= fewest or long):
            block = max(least_keys, block // 2)
        else:
            rows = -(-rows // 2)

    fewest = max(limits.fewest_backward_queries, min(limits.long_backward_queries, 2 * even))
    backward = min(most_backward, max(fewest, even)) if chunk_size is None else rows
    backward = max(1, min(backward, work.queries))
    while work.backward_bytes(backward) > share:
        backward -= -(-backward // 8)
    heads = 1
    if chunk_size is None and (rows, backward, block) == (work.queries, work.queries, keys):
        heads = _stack(work, keys, share)
    held = work.task_bytes(rows, block, backward, heads)
    return Schedule(rows, block, backward, heads, held, work, threaded)


def _stack(work: Workload, keys: int, share: int) -> int:
    """The number of heads of a chunk where they are short, so that each does not cost a task."""
    limits, queries = tuning.current, work.queries
    if work.whole_budget:
        most = limits.most_device_queries // queries
    elif work.short:
        most = limits.stack_scores // (queries * keys)
    else:
        most = limits.stack_queries // queries
    heads = max(1, min(work.batch[work.axis], most))
    if work.scores >= limits.worth_threads:  # some for each of the tasks
        heads = min(heads, -(-work.heads // work.tasks))
    while heads > 1 and work.task_bytes(queries, keys, queries, heads) > share:
        heads -= 1
    return heads


def schedule_dense(call: Call, chunk_size: Any = None, memory_budget: Any = None) -> Schedule:
    """The schedule of the dense function: all queries at once, if neither option is given."""
    work = Workload.of(call)
    if memory_budget is None:
        rows = work.queries
    else:
        budget = check_integer("memory_budget", memory_budget, least=1)
        row = work.dense_row_bytes * work.tasks
        if row > budget:
            raise ValueError(f"memory_budget must be at least {row} bytes here, got {budget}")
        rows = budget // row
    if chunk_size is not None:
        rows = min(rows, check_integer("chunk_size", chunk_size, least=1))
    rows = max(1, min(rows, work.queries))
    heads, scores = 1, work.queries * work.keys
    if chunk_size is None and memory_budget is None and scores:
        limits = tuning.current
        most = limits.device_scores if work.whole_budget else limits.stack_scores
        heads = max(1, min(work.batch[work.axis], most // scores))
    held = work.dense_row_bytes * rows * heads
    return Schedule(rows, max(work.keys, 1), rows, heads, held, work, call.ops.THREADS)


def slices(length: int, size: int) -> Iterator[slice]:
    """The slices that cut `length` into pieces of `size`, the last one perhaps shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
