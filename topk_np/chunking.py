"""How the work is cut into chunks of queries and blocks of keys, to fit a memory budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from topk_np._namespace import check_integer
from topk_np.kernels import GATHERED_BYTES
from topk_np.workers import MOST_TASKS

DEFAULT_MEMORY_BUDGET = 64 * 2**20  # bytes of scratch, shared by all workers

# What was measured to be quick: a block of scores near the size of a core's cache, and chunks
# of queries that are long enough for the matrix product yet leave some for every worker.
MOST_QUERIES, FEWEST_QUERIES = 512, 128
BLOCK_SCORES = 2**20
# Keys of a block, so that its rows are no multiple of 4 KiB long. Gaps between rows (see `Scratch`)
# do as well, but what is found in them costs more.
FEW_MORE = 16
LEAST_BLOCK = 1024
LONG = 8  # times k keys make a block that is quick to select from
MOST_BACKWARD_QUERIES, FEWEST_BACKWARD_QUERIES = 2048, 256
LONG_BACKWARD_QUERIES = 1024  # chunks that are worth having four tasks, not eight
PACKED_QUERIES = 512  # queries of all heads of a task, where heads are short
# A device does one task at a time, with all of the budget: what keeps it busy is much work at once.
MOST_DEVICE_QUERIES, FEWEST_DEVICE_QUERIES = 2**14, 2**9
DEVICE_SCORES = 2**27
# Heads that are worked on as stacks of matrices, several at once: where multiplying by all values
# costs less than gathering those that are kept.
SHORT_KEYS = 512
SHORT_SCORES = 2**16  # of a head
PACKED_SCORES = 2**16  # of the heads that are taken together
DENSE_MATRICES = 10  # of the size of a chunk's scores that the dense backward pass holds
WORTH_THREADS = 2**18  # scores from which threads save more than they cost


@dataclass(frozen=True)
class Sizes:
    """What a plan depends on: shapes alone, so that results do not depend on the machine."""

    heads: int
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
    """Further numbers for each kept slot that are held until all tasks of a wave are done."""
    masked: bool = False
    """Whether some keys may be hidden from some queries."""
    narrow: bool = False
    """Whether inputs are half precision, so that chunks of them are cast."""
    copied: bool = False
    """Whether keys are copied block by block: cast, or laid out as BLAS needs them."""
    whole_rows: bool = False
    """Whether a query's scores are needed all at once."""
    on_device: bool = False
    """Whether the arrays lie on a device with kernels of ours."""
    stackable: bool = False
    """Whether heads can be worked on as stacks of matrices, if they are short."""

    @property
    def short(self) -> bool:
        """Whether heads are worked on as stacks of matrices, as far as the budget allows."""
        scores = self.queries * self.keys
        some = self.heads > 0 and 0 < scores <= SHORT_SCORES
        return self.stackable and some and self.keys <= SHORT_KEYS

    @property
    def tasks(self) -> int:
        """Tasks that may run at once, and share the budget."""
        return 1 if self.on_device else MOST_TASKS

    def forward_bytes(self, rows: int, keys: int) -> int:
        """Scratch of one task of the forward pass."""
        block = keys * self.score_matrices * self.itemsize
        hidden = 2 * keys * self.masked
        found = 1.25 * keys + min(keys, 3 * self.slots) * (3 * self.itemsize + 12) + 32
        kept = self.slots * ((4 + self.slot_matrices) * self.itemsize + 12)
        kept += self.width * self.itemsize
        selecting, adding = rows * max(hidden, found), rows * kept + self._gathered_bytes(rows)
        copies = keys * self.width * self.itemsize * self.copied
        return int(rows * block + max(selecting, adding)) + copies

    def backward_bytes(self, rows: int) -> int:
        """Scratch of one task of the backward pass."""
        products = rows * self.slots * ((3 + self.slot_matrices) * self.itemsize + 12)
        products += rows * self.slots * 24 * self.on_device  # where indices are sorted
        return self.held_bytes(rows) + products + self._gathered_bytes(rows)

    def held_bytes(self, rows: int) -> int:
        """The part of `backward_bytes` that is held until all tasks of a wave are done."""
        width = self.width if self.narrow else self.width // 2
        return rows * self.itemsize * ((2 + self.held_matrices) * self.slots + width)

    def stacked_bytes(self, heads: int) -> int:
        """Copies of the keys and values of several heads, and of their gradients."""
        return 2 * heads * self.keys * self.width * self.itemsize if heads > 1 else 0

    def task_bytes(self, rows: int, keys: int, backward: int, heads: int) -> int:
        """Scratch of a task of either pass, for so many rows of each of so many heads."""
        forward = self.forward_bytes(heads * rows, keys)
        return max(forward, self.backward_bytes(heads * backward)) + self.stacked_bytes(heads)

    def short_forward_bytes(self, heads: int) -> int:
        """Scratch of one task of the forward pass on a stack of heads, but for copies of them."""
        hidden = (self.itemsize + 2) * self.masked
        scores = 2 * self.itemsize + 1 + hidden  # as they are and sorted, and which are the best
        slots = self.slots * (8 + (self.itemsize + 12) * self.masked)
        return heads * self.queries * (self.keys * scores + slots)

    def short_backward_bytes(self, heads: int) -> int:
        """Scratch of one task of the backward pass on a stack of heads, but for copies of them."""
        matrices = 2 * self.keys * self.itemsize  # weights and their gradients
        return heads * self.queries * (matrices + 4 * self.slots * self.masked)

    def copied_bytes(self, heads: int) -> int:
        """Copies of the queries, keys and values of a stack of heads, or of their gradients."""
        return heads * (self.queries + self.keys) * self.width * self.itemsize

    @property
    def dense_row_bytes(self) -> int:
        """Scratch of one query of a task of the dense function, whose slots are all keys."""
        matrices = DENSE_MATRICES + self.score_matrices - 1 + self.slot_matrices
        return matrices * max(self.keys, 1) * self.itemsize

    def _gathered_bytes(self, rows: int) -> int:
        row = self.slots * self.width // 2 * self.itemsize
        return max(row, min(GATHERED_BYTES, rows * row))


@dataclass(frozen=True)
class Chunks:
    """How one call is cut."""

    queries: int
    """Queries of a chunk of the forward pass."""
    keys: int
    """Keys of a block; the k best of a chunk are merged block by block."""
    backward_queries: int
    """Queries of a chunk of the backward pass, which holds no scores."""
    heads: int
    """Heads that a task takes together, where they are short."""
    task_bytes: int
    """Scratch that one task holds at most, of `Sizes.tasks` that may run at once."""
    short: bool = False
    """Whether heads are worked on as stacks of matrices."""


def plan_chunks(sizes: Sizes, chunk_size: Any = None, memory_budget: Any = None) -> Chunks:
    """
    Cut the work so that the tasks that run at once hold at most `memory_budget` bytes of scratch.

    `chunk_size` is an upper limit to the queries of a chunk.
    """
    budget = DEFAULT_MEMORY_BUDGET
    if memory_budget is not None:
        budget = check_integer("memory_budget", memory_budget, least=1)
    if chunk_size is not None:
        chunk_size = check_integer("chunk_size", chunk_size, least=1)
    share = budget // sizes.tasks
    if sizes.short and chunk_size is None:
        short = _plan_short(sizes, share)
        if short is not None:
            return short
    keys = max(sizes.keys, 1)
    least_keys = keys if sizes.whole_rows else min(keys, max(LEAST_BLOCK, 4 * sizes.slots))
    least = max(sizes.forward_bytes(1, least_keys), sizes.backward_bytes(1))
    if least > share:
        raise ValueError(
            f"memory_budget must be at least {least * sizes.tasks} bytes here, got {budget}"
        )

    even = -(-sizes.heads * sizes.queries // sizes.tasks)  # a share for each of the tasks
    most, most_backward = MOST_QUERIES, MOST_BACKWARD_QUERIES
    fewest, scores = FEWEST_QUERIES // 2, BLOCK_SCORES
    if sizes.on_device:
        most = most_backward = MOST_DEVICE_QUERIES
        fewest, scores = FEWEST_DEVICE_QUERIES, DEVICE_SCORES
    rows = min(most, max(FEWEST_QUERIES, even)) if chunk_size is None else chunk_size
    rows = max(1, min(rows, sizes.queries))
    block = max(scores // rows, LONG * sizes.slots) + FEW_MORE
    block = keys if sizes.whole_rows else min(keys, block)
    while sizes.forward_bytes(rows, block) > share:
        # Short blocks make selection dear, short chunks the matrix product: give way by turns.
        long = block > LONG * sizes.slots and not sizes.on_device
        if block > least_keys and (rows <= fewest or long):
            block = max(least_keys, block // 2)
        else:
            rows = -(-rows // 2)

    fewest_backward = max(FEWEST_BACKWARD_QUERIES, min(LONG_BACKWARD_QUERIES, 2 * even))
    backward = min(most_backward, max(fewest_backward, even))
    if chunk_size is not None:
        backward = rows
    backward = max(1, min(backward, sizes.queries))
    while sizes.backward_bytes(backward) > share:
        backward -= -(-backward // 8)
    heads = 1
    if chunk_size is None and (rows, backward, block) == (sizes.queries, sizes.queries, keys):
        heads = _pack(sizes, keys, share)
    return Chunks(rows, block, backward, heads, sizes.task_bytes(rows, block, backward, heads))


def _plan_short(sizes: Sizes, share: int) -> Chunks | None:
    """Stacks of so many heads as fit a task's share of the budget; None if none fits."""
    most = min(sizes.heads, PACKED_SCORES // (sizes.queries * sizes.keys))
    for heads in range(_even(sizes, max(most, 1)), 0, -1):
        whole = sizes.queries, sizes.keys, sizes.queries, heads
        stacked = max(sizes.short_forward_bytes(heads), sizes.short_backward_bytes(heads))
        stacked += 2 * sizes.copied_bytes(heads)
        held = max(stacked, sizes.task_bytes(*whole))  # as where a number is not finite
        if held <= share:
            return Chunks(*whole, held, short=True)
    return None


def _even(sizes: Sizes, heads: int) -> int:
    """So many heads a task, or fewer, where that leaves some for each of the tasks."""
    if sizes.heads * sizes.queries * sizes.keys < WORTH_THREADS:
        return heads
    return min(heads, -(-sizes.heads // sizes.tasks))


def _pack(sizes: Sizes, keys: int, share: int) -> int:
    """How many heads a task takes where they are short, so that each does not cost a task."""
    packed = MOST_DEVICE_QUERIES if sizes.on_device else PACKED_QUERIES
    heads = max(1, _even(sizes, min(sizes.heads, packed // sizes.queries)))
    while heads > 1 and sizes.task_bytes(sizes.queries, keys, sizes.queries, heads) > share:
        heads -= 1
    return heads


def plan_dense_chunk(sizes: Sizes, chunk_size: Any = None, memory_budget: Any = None) -> int:
    """How many queries make a chunk of the dense function: all, if neither option is given."""
    if memory_budget is None:
        rows = sizes.queries
    else:
        budget = check_integer("memory_budget", memory_budget, least=1)
        row = sizes.dense_row_bytes * sizes.tasks
        if row > budget:
            raise ValueError(f"memory_budget must be at least {row} bytes here, got {budget}")
        rows = budget // row
    if chunk_size is not None:
        rows = min(rows, check_integer("chunk_size", chunk_size, least=1))
    return max(1, min(rows, sizes.queries))


def slices(length: int, size: int) -> Iterator[slice]:
    """The slices that cut `length` into pieces of `size`, the last one perhaps shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
