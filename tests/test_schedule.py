"""How work is cut: every query of every head once, within the budget, by shapes alone."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np
from topk_np.kernels import tuning
from topk_np.options.call import Call
from topk_np.options.check import attention_call
from topk_np.schedule.plan import (
    Schedule,
    Workload,
    schedule_call,
    schedule_dense,
    schedule_work,
    slices,
)
from topk_np.schedule.threads import MOST_TASKS

MIB = 2**20
lengths = st.integers(0, 10**6)
LONG = Workload((4,), queries=4096, keys=4096, width=128, slots=64, itemsize=4)
SHORT = Workload((512,), queries=16, keys=32, width=32, slots=8, itemsize=4)


@st.composite
def workloads(draw: st.DrawFn, lengths: st.SearchStrategy[int] = lengths) -> Workload:
    """The sizes of any problem."""
    keys = draw(lengths)
    return Workload(
        batch=draw(st.lists(st.integers(0, 8), min_size=1, max_size=3).map(tuple)),
        queries=draw(lengths),
        keys=keys,
        width=draw(st.integers(0, 1024)),
        slots=min(keys, draw(st.integers(1, 512))),
        itemsize=draw(st.sampled_from([4, 8])),
        score_matrices=draw(st.integers(1, 6)),
        slot_matrices=draw(st.integers(0, 8)),
        held_matrices=draw(st.integers(0, 1)),
        masked=draw(st.booleans()),
        narrow=draw(st.booleans()),
        copied=draw(st.booleans()),
        whole_rows=draw(st.booleans()),
        shared=draw(st.booleans()),
        whole_budget=draw(st.booleans()),
    )


def schedule(work: Workload, chunk_size: int | None = None, budget: int = 64 * MIB) -> Schedule:
    """The schedule of a workload."""
    return schedule_work(work, chunk_size, budget, True, tuning.current)


def least_budget(work: Workload) -> int:
    """The least memory budget for a problem, as the error names it."""
    with pytest.raises(ValueError, match=r"memory_budget must be at least .* got 1$") as error:
        schedule(work, budget=1)
    return next(int(word) for word in str(error.value).split() if word.isdigit())


def call_of(queries: int, keys: int, **options: Any) -> Call:
    """A call of three heads whose arrays take no memory."""
    query, key = (np.broadcast_to(np.float32(1), (3, n, 8)) for n in (queries, keys))
    return attention_call(query, key, key, (2, None, None), **options)


@given(length=st.integers(0, 300), size=st.integers(1, 301))
def test_slices_cover_every_row_once_in_order(length: int, size: int) -> None:
    pieces = list(slices(length, size))
    assert [row for piece in pieces for row in range(length)[piece]] == list(range(length))
    assert all(0 < piece.stop - piece.start <= size for piece in pieces)


@given(
    work=workloads(st.integers(0, 40)),
    factor=st.floats(1, 50),
    chunk=st.none() | st.integers(1, 50),
)
def test_chunks_cover_every_query_of_every_head_once(
    work: Workload, factor: float, chunk: int | None
) -> None:
    cut = schedule(work, chunk, int(least_budget(work) * factor))
    for chunks, size in ((cut.chunks, cut.chunk_size), (cut.backward_chunks, None)):
        found: Counter[tuple[Any, ...]] = Counter()
        for heads, rows in chunks:
            assert 0 < heads.number <= cut.heads
            assert 0 < rows.stop - rows.start <= (size or cut.backward_chunk_size)
            for i in range(heads.number):
                head = list(heads.first)
                head[heads.axis] += i
                found.update((*head, row) for row in range(rows.start, rows.stop))
        assert set(found) == set(np.ndindex(*work.batch, work.queries))
        assert all(count == 1 for count in found.values())


@given(work=workloads(), factor=st.floats(1, 1000), chunk=st.none() | st.integers(1, 10**6))
def test_a_task_holds_at_most_its_share_of_the_budget(
    work: Workload, factor: float, chunk: int | None
) -> None:
    budget = int(least_budget(work) * factor)
    cut = schedule(work, chunk, budget)
    assert cut.task_bytes * work.tasks <= budget
    pieces = cut.chunk_size, cut.key_block, cut.backward_chunk_size, cut.heads
    assert cut.task_bytes == work.task_bytes(*pieces)


@given(work=workloads(), factor=st.floats(1, 1000))
def test_chunks_and_blocks_are_at_least_one_and_at_most_all(work: Workload, factor: float) -> None:
    cut = schedule(work, budget=int(least_budget(work) * factor))
    assert 1 <= cut.chunk_size <= max(work.queries, 1)
    assert 1 <= cut.key_block <= max(work.keys, 1)
    assert 1 <= cut.backward_chunk_size <= max(work.queries, 1)
    assert not work.whole_rows or cut.key_block == max(work.keys, 1)
    assert cut.key_block >= min(work.slots, work.keys)  # a block can hold the k best


@given(work=workloads())
def test_the_least_budget_is_named_and_one_byte_less_is_refused(work: Workload) -> None:
    least = least_budget(work)
    schedule(work, budget=least)
    with pytest.raises(ValueError, match=rf"at least {least} bytes here, got {least - 1}"):
        schedule(work, budget=least - 1)


@given(work=workloads(), chunk=st.integers(1, 1000))
def test_a_given_chunk_size_is_an_upper_limit_for_both_passes(work: Workload, chunk: int) -> None:
    cut = schedule(work, chunk, 2**40)
    assert cut.chunk_size == cut.backward_chunk_size == max(1, min(chunk, work.queries))
    assert cut.heads == 1
    tight = schedule(work, chunk, least_budget(work))
    assert max(tight.chunk_size, tight.backward_chunk_size) <= chunk


@given(work=workloads(), factors=st.tuples(st.floats(1, 100), st.floats(1, 100)))
def test_more_memory_never_makes_less_of_a_chunk_of_one_head(
    work: Workload, factors: tuple[float, float]
) -> None:
    least = least_budget(work)
    less, more = (schedule(work, budget=int(least * factor)) for factor in sorted(factors))
    assert less.backward_chunk_size <= more.backward_chunk_size
    assert less.chunk_size <= more.chunk_size or less.key_block <= more.key_block


@given(queries=st.integers(0, 10**6), keys=lengths, size=st.none() | st.integers(1, 10**6))
def test_a_dense_chunk_fits_the_budget(queries: int, keys: int, size: int | None) -> None:
    call = call_of(queries, keys)
    row = Workload.of(call).dense_row_bytes
    assert row >= tuning.current.dense_matrices * max(keys, 1) * 4
    least = row * MOST_TASKS
    for budget in (least, 2 * least - 1, 5 * least + 7):
        rows = schedule_dense(call, size, budget).chunk_size
        assert 1 <= rows <= max(1, min(queries, size or queries))
        assert rows * least <= budget
    with pytest.raises(ValueError, match=rf"at least {least} bytes here, got {least - 1}"):
        schedule_dense(call, size, least - 1)


@given(queries=lengths, size=st.integers(1, 10**6))
def test_a_dense_chunk_is_all_queries_unless_told_otherwise(queries: int, size: int) -> None:
    call = call_of(queries, 5)
    assert schedule_dense(call).chunk_size == max(1, queries)
    assert schedule_dense(call, size).chunk_size == max(1, min(size, queries))


def test_long_problems_leave_work_for_every_task_and_short_ones_are_not_torn() -> None:
    one = replace(LONG, batch=(1,))
    assert schedule(one).chunk_size <= 4096 // MOST_TASKS
    assert schedule(replace(one, queries=50)).chunk_size == 50


@pytest.mark.parametrize(
    ("work", "budget", "cut"),
    [
        (LONG, 64 * MIB, (512, 2064, 2048, 1)),
        (replace(LONG, queries=1024, keys=1024), 64 * MIB, (512, 1024, 1024, 1)),
        (replace(LONG, batch=(32,), queries=1, keys=10**6), 64 * MIB, (1, 10**6, 1, 1)),
        (SHORT, 64 * MIB, (16, 32, 16, 64)),
    ],
    ids=["long", "one block of keys", "decoding", "short"],
)
def test_examples_of_schedules(work: Workload, budget: int, cut: tuple[int, ...]) -> None:
    """Chunks of queries, blocks of keys, backward chunks, heads of a stack."""
    made = schedule(work, budget=budget)
    assert (made.chunk_size, made.key_block, made.backward_chunk_size, made.heads) == cut


def test_little_memory_makes_blocks_and_chunks_shorter() -> None:
    cuts = [schedule(LONG, budget=budget * MIB) for budget in (64, 16, 4, 2)]
    for more, less in itertools.pairwise(cuts):
        assert less.chunk_size * less.key_block < more.chunk_size * more.key_block
        assert less.backward_chunk_size < more.backward_chunk_size


def test_a_device_gets_as_much_work_at_once_as_the_budget_allows() -> None:
    here, there = schedule(LONG), schedule(replace(LONG, whole_budget=True))
    assert there.chunk_size * there.key_block > 4 * here.chunk_size * here.key_block
    assert there.backward_chunk_size == 4096
    wide = replace(LONG, queries=2**17, keys=2**17, whole_budget=True)
    assert schedule(wide).chunk_size >= 256  # then keys give way
    assert schedule(replace(SHORT, whole_budget=True)).heads > schedule(SHORT).heads


@given(
    budget=st.integers(2**16, 2**24),
    batch=st.sampled_from([(64,), (3, 64), (64, 2)]),
    keys=st.integers(1, 200),
)
def test_short_heads_are_taken_together_as_far_as_the_budget_allows(
    budget: int, batch: tuple[int, ...], keys: int
) -> None:
    work = Workload(batch, queries=8, keys=keys, width=16, slots=min(4, keys), itemsize=4)
    cut = schedule(work, budget=max(budget, least_budget(work)))
    if (cut.chunk_size, cut.key_block) != (8, keys):
        assert cut.heads == 1
        return
    limits = tuning.current
    most = min(64, (limits.stack_scores // keys if work.short else limits.stack_queries) // 8)
    if work.scores >= limits.worth_threads:
        most = min(most, -(-work.heads // MOST_TASKS))
    held = [work.task_bytes(8, keys, 8, n) * MOST_TASKS for n in (cut.heads, cut.heads + 1)]
    assert cut.heads == 1 or held[0] <= max(budget, least_budget(work))
    assert cut.heads == most or held[1] > budget


def test_stacks_leave_some_heads_for_each_of_the_tasks() -> None:
    many = replace(SHORT, batch=(100,), queries=64, keys=64)
    assert many.scores >= tuning.current.worth_threads
    assert len(schedule(many).chunks) >= MOST_TASKS


def test_heads_are_taken_together_along_the_longest_of_the_batch_axes() -> None:
    for batch in ((2, 40), (40, 2)):
        (heads, rows), *_ = schedule(replace(SHORT, batch=batch)).chunks
        assert rows == slice(0, 16)
        assert (heads.axis, heads.number) == (batch.index(40), 40)


def test_the_budget_is_64_mib_unless_told_otherwise() -> None:
    for call in (call_of(4096, 4096), call_of(300, 10**5)):
        assert schedule_call(call) == schedule_call(call, memory_budget=64 * MIB)


def test_shapes_alone_decide_how_work_is_cut() -> None:
    """Neither the number of threads nor the values."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 3, 700, 8))
    schedules = [
        topk_np.topk_attention_fwd(a, a, a, k=5, workers=workers)[1].schedule
        for a in (x, y)
        for workers in (1, 2, 8)
    ]
    assert all(one == schedules[0] for one in schedules)


def test_a_mask_holds_two_bytes_a_score() -> None:
    plain, masked = (replace(LONG, slots=1, masked=masked) for masked in (False, True))
    assert masked.forward_bytes(10, 10**4) == 10 * 10**4 * (4 + 2)
    assert plain.forward_bytes(10, 10**4) < masked.forward_bytes(10, 10**4)
