"""How work is cut: every row once, within the budget, by shapes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topk_np.chunking import DENSE_MATRICES, Sizes, plan_chunks, plan_dense_chunk, slices
from topk_np.workers import MOST_TASKS

lengths = st.integers(0, 10**6)


@st.composite
def sizes_QNK(draw: st.DrawFn) -> Sizes:
    """The shapes of any problem."""
    keys = draw(lengths)
    return Sizes(
        heads=draw(st.integers(0, 64)),
        queries=draw(lengths),
        keys=keys,
        width=draw(st.integers(0, 1024)),
        slots=min(keys, draw(st.integers(1, 512))),
        itemsize=draw(st.sampled_from([4, 8])),
        score_matrices=draw(st.integers(1, 6)),
        whole_rows=draw(st.booleans()),
        on_device=draw(st.booleans()),
    )


def least_budget(sizes: Sizes) -> int:
    """The least memory budget for a problem, as the error names it."""
    with pytest.raises(ValueError, match=r"memory_budget must be at least .* got 1$") as error:
        plan_chunks(sizes, memory_budget=1)
    return next(int(word) for word in str(error.value).split() if word.isdigit())


@given(length=st.integers(0, 300), size=st.integers(1, 301))
def test_slices_cover_every_row_once_in_order(length: int, size: int) -> None:
    pieces = list(slices(length, size))
    assert [row for piece in pieces for row in range(length)[piece]] == list(range(length))
    assert all(0 < piece.stop - piece.start <= size for piece in pieces)


@given(sizes=sizes_QNK(), factor=st.floats(1, 1000), chunk=st.none() | st.integers(1, 10**6))
def test_a_task_holds_at_most_its_share_of_the_budget(
    sizes: Sizes, factor: float, chunk: int | None
) -> None:
    budget = int(least_budget(sizes) * factor)
    chunks = plan_chunks(sizes, chunk, budget)
    assert chunks.task_bytes * sizes.tasks <= budget
    cut = chunks.queries, chunks.keys, chunks.backward_queries, chunks.heads
    assert chunks.task_bytes == sizes.task_bytes(*cut)


@given(sizes=sizes_QNK(), factor=st.floats(1, 1000))
def test_chunks_and_blocks_are_at_least_one_and_at_most_all(sizes: Sizes, factor: float) -> None:
    chunks = plan_chunks(sizes, memory_budget=int(least_budget(sizes) * factor))
    assert 1 <= chunks.queries <= max(sizes.queries, 1)
    assert 1 <= chunks.keys <= max(sizes.keys, 1)
    assert 1 <= chunks.backward_queries <= max(sizes.queries, 1)
    assert not sizes.whole_rows or chunks.keys == max(sizes.keys, 1)
    assert chunks.keys >= min(sizes.slots, sizes.keys)  # a block can hold the k best


@given(sizes=sizes_QNK())
def test_the_least_budget_is_named_and_one_byte_less_is_refused(sizes: Sizes) -> None:
    least = least_budget(sizes)
    plan_chunks(sizes, memory_budget=least)
    with pytest.raises(ValueError, match=rf"at least {least} bytes here, got {least - 1}"):
        plan_chunks(sizes, memory_budget=least - 1)


@given(sizes=sizes_QNK(), chunk=st.integers(1, 1000))
def test_a_given_chunk_size_is_an_upper_limit(sizes: Sizes, chunk: int) -> None:
    chunks = plan_chunks(sizes, chunk, memory_budget=2**40)
    assert chunks.queries == chunks.backward_queries == max(1, min(chunk, sizes.queries))
    tight = plan_chunks(sizes, chunk, memory_budget=least_budget(sizes))
    assert max(tight.queries, tight.backward_queries) <= chunk


@given(sizes=sizes_QNK(), size=st.none() | st.integers(1, 10**6), spare=lengths)
def test_a_dense_chunk_fits_the_budget(sizes: Sizes, size: int | None, spare: int) -> None:
    row = sizes.dense_row_bytes
    assert row >= DENSE_MATRICES * max(sizes.keys, 1) * sizes.itemsize
    least = row * sizes.tasks
    rows = plan_dense_chunk(sizes, size, least + spare)
    assert 1 <= rows <= max(1, min(sizes.queries, size or sizes.queries))
    assert rows * least <= least + spare
    with pytest.raises(ValueError, match=rf"at least {least} bytes here, got {least - 1}"):
        plan_dense_chunk(sizes, size, least - 1)


@given(sizes=sizes_QNK(), size=st.integers(1, 10**6))
def test_a_dense_chunk_is_all_queries_unless_told_otherwise(sizes: Sizes, size: int) -> None:
    assert plan_dense_chunk(sizes) == max(1, sizes.queries)
    assert plan_dense_chunk(sizes, size) == max(1, min(size, sizes.queries))


def test_long_problems_leave_work_for_every_task_and_short_ones_are_not_torn() -> None:
    sizes = Sizes(heads=1, queries=4096, keys=4096, width=128, slots=64, itemsize=4)
    assert plan_chunks(sizes).queries <= 4096 // MOST_TASKS
    short = replace(sizes, queries=50)
    assert plan_chunks(short).queries == 50


def test_a_device_gets_as_much_work_at_once_as_the_budget_allows() -> None:
    sizes = Sizes(heads=8, queries=4096, keys=4096, width=128, slots=64, itemsize=4)
    here, there = plan_chunks(sizes), plan_chunks(replace(sizes, on_device=True))
    assert there.queries * there.keys > 4 * here.queries * here.keys
    assert there.backward_queries == 4096
    wide = replace(sizes, queries=2**17, keys=2**17, on_device=True)
    assert plan_chunks(wide).queries >= 256  # then keys give way
    short = replace(sizes, queries=16, keys=64, heads=512)
    assert plan_chunks(replace(short, on_device=True)).heads > plan_chunks(short).heads


@given(budget=st.integers(2**16, 2**24))
def test_short_heads_are_taken_together_as_far_as_the_budget_allows(budget: int) -> None:
    sizes = Sizes(heads=64, queries=8, keys=40, width=16, slots=4, itemsize=4)
    heads = plan_chunks(sizes, memory_budget=budget).heads
    held = [sizes.task_bytes(8, 40, 8, n) * MOST_TASKS for n in (heads, heads + 1)]
    assert heads == 1 or held[0] <= budget
    assert heads == 64 or held[1] > budget
