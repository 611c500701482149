"""Every engine selects what a sorted list gives, from whole rows and from blocks of them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.engines import Engine
from tests.kernels.stacks import LAYOUTS, as_laid_out, lay_out, layouts, precisions
from tests.oracles import select_by_sorting
from tests.strategies import scores_CN, seeds
from topk_np.kernels import Selection


def rows_of(stack: np.ndarray) -> np.ndarray:
    """(G C, n): the rows of all heads."""
    *lead, columns = stack.shape
    return stack.reshape(math.prod(lead), columns)


def assert_selection(result: Selection, scores: np.ndarray, chosen: list[list[int]]) -> None:
    """Assert that a selection (G, C, K) has what is chosen of each row, then unused slots."""
    assert result.values.dtype == scores.dtype
    assert result.indices.dtype == np.int32
    *lead, slots = result.values.shape
    assert result.indices.shape == result.values.shape
    assert tuple(lead) == scores.shape[:-1]
    for row, values, indices, best in zip(*map(rows_of, (scores, *result)), chosen, strict=True):
        assert indices.tolist() == best + [-1] * (slots - len(best))
        np.testing.assert_array_equal(values[: len(best)], row[best])
        assert (values[len(best) :] == -math.inf).all()


def chosen_by_sorting(scores: np.ndarray, k: int) -> list[list[int]]:
    """Of each row of a stack the indices of the k best."""
    return [select_by_sorting(row.tolist(), k) for row in rows_of(scores)]


def chosen_by_lexsort(scores: np.ndarray, k: int) -> list[list[int]]:
    """`chosen_by_sorting`, quick for long rows."""
    found = []
    for row in rows_of(scores):
        falling = np.where(np.isnan(row), 0, -row)
        order = np.lexsort((np.arange(len(row)), falling, ~np.isnan(row)))
        found.append(sorted(order[row[order] != -np.inf][:k].tolist()))
    return found


def stacked(scores: np.ndarray, heads: int) -> np.ndarray:
    """Scores (C, n) as those of several heads, (G, C / G, n), without the rows left over."""
    rows = len(scores) // heads
    return scores[: heads * rows].reshape(heads, rows, scores.shape[1])


@given(
    scores=precisions.flatmap(scores_CN),
    heads=st.integers(1, 2),
    k=st.integers(1, 14),
    layout=layouts,
)
def test_select_takes_what_a_sorted_list_gives(
    engine: Engine, scores: np.ndarray, heads: int, k: int, layout: str
) -> None:
    scores = as_laid_out(stacked(scores, heads), layout)
    result = engine.call("select", lay_out(engine, scores, layout), k)
    assert result.values.shape[2] == min(k, scores.shape[2])
    assert_selection(result, scores, chosen_by_sorting(scores, k))


def wide_scores(columns: int, levels: int, seed: int) -> np.ndarray:
    """Rows of few or many different values: plain, half masked, with NaN, rising, all masked."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (6, columns)).astype(np.float32)
    scores[1, rng.random(columns) < 0.5] = -np.inf
    scores[2, rng.random(columns) < 0.01] = np.nan
    scores[3] = np.sort(scores[3])
    scores[4] = -np.inf
    scores[5, rng.random(columns) < 0.99] = -np.inf
    return scores.reshape(2, 3, columns)


each_width = pytest.mark.parametrize("columns", [1, 63, 4099])
each_k = pytest.mark.parametrize("k", [1, 8, 100, 300])
each_levels = pytest.mark.parametrize("levels", [1, 30, 10**6])


@each_width
@each_k
@each_levels
def test_select_takes_lower_indices_first_in_wide_rows(
    engine: Engine, columns: int, k: int, levels: int
) -> None:
    scores = wide_scores(columns, levels, seed=columns + k + levels)
    assert_selection(engine.call("select", scores, k), scores, chosen_by_lexsort(scores, k))


@pytest.mark.parametrize("shape", [(1, 0, 4), (2, 3, 0), (1, 0, 0)])
def test_nothing_is_selected_from_no_scores(engine: Engine, shape: tuple[int, int, int]) -> None:
    found = engine.call("select", np.zeros(shape), 2)
    assert found.values.shape == found.indices.shape == (*shape[:2], min(2, shape[2]))


def test_select_treats_both_zeros_as_equal(engine: Engine) -> None:
    scores = np.asarray([[[-0.0, 0.0, -0.0, 0.0], [0.0, -0.0, 0.0, -0.0]]])
    assert engine.call("select", scores, 2).indices.tolist() == [[[0, 1], [0, 1]]]


def test_select_ranks_nan_above_inf_and_earlier_nan_first(engine: Engine) -> None:
    scores = np.asarray([[[math.inf, math.nan, 1.0, -math.nan, math.nan]]])
    assert engine.call("select", scores, 2).indices.tolist() == [[[1, 3]]]
    assert engine.call("select", scores, 4).indices.tolist() == [[[0, 1, 3, 4]]]


@pytest.mark.parametrize("rows", [3, 200])
def test_rows_of_equal_scores_give_their_first(engine: Engine, rows: int) -> None:
    result = engine.call("select", np.ones((2, rows, 100)), 10)
    assert result.indices.tolist() == [[list(range(10))] * rows] * 2


@pytest.mark.parametrize("k", [2, 30])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_select_takes_scores_however_they_lie_in_memory(
    engine: Engine, layout: str, k: int
) -> None:
    scores = np.random.default_rng(0).standard_normal((3, 5, 200)).astype(np.float32)
    expected = engine.call("select", as_laid_out(scores, layout), k)
    found = engine.call("select", lay_out(engine, scores, layout), k)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.values, expected.values)


def assert_running(
    engine: Engine,
    scores: np.ndarray,
    k: int,
    edges: list[int],
    layout: str = "plain",
    others: int = 2,
    more: int = 0,
) -> None:
    """Assert that what is selected from blocks is what is selected from the whole."""
    rng = np.random.default_rng(scores.shape[2])
    scores = as_laid_out(scores, layout)
    beside = [rng.standard_normal(scores.shape).astype(scores.dtype) for _ in range(others)]
    running = engine.module.RunningTopK(k, edges[-1])
    for start, stop in pairwise(edges):
        block = lay_out(engine, scores[:, :, start:stop], layout)
        further = (engine.given(other[:, :, start:stop].copy()) for other in beside)
        with np.errstate(all="ignore"):
            running.add(block, start, *further)
    width = min(k, edges[-1]) + more
    values, indices, *found = engine.answer(list(running.result(width)))
    assert indices.shape[2] == width
    assert_selection(Selection(values, indices), scores, chosen_by_lexsort(scores, k))
    used = indices >= 0
    for other, kept in zip(beside, found, strict=True):
        assert kept.dtype == other.dtype
        taken = np.take_along_axis(other, np.where(used, indices, 0), 2) if scores.size else 0.0
        np.testing.assert_array_equal(kept, np.where(used, taken, 0))


@given(
    scores=precisions.flatmap(scores_CN),
    heads=st.integers(1, 2),
    k=st.integers(1, 14),
    layout=layouts,
    others=st.integers(0, 2),
    more=st.integers(0, 2),
    data=st.data(),
)
def test_a_running_selection_is_that_of_the_whole(
    engine: Engine,
    scores: np.ndarray,
    heads: int,
    k: int,
    layout: str,
    others: int,
    more: int,
    data: st.DataObject,
) -> None:
    scores = stacked(scores, heads)
    columns = scores.shape[2]
    inner = data.draw(st.sets(st.integers(1, columns - 1), max_size=4)) if columns > 1 else set()
    assert_running(engine, scores, k, [0, *sorted(inner), columns], layout, others, more)


@each_k
@each_levels
@pytest.mark.parametrize("blocks", [2, 7])
def test_a_running_selection_from_wide_rows_is_that_of_the_whole(
    engine: Engine, k: int, levels: int, blocks: int
) -> None:
    scores = wide_scores(1024, levels, seed=k + levels + blocks)
    edges = np.linspace(0, scores.shape[2], blocks + 1).astype(int).tolist()
    assert_running(engine, scores, k, edges)
    assert_running(engine, -scores[:, :, ::-1], k, edges, others=0)


@given(seed=seeds, k=st.integers(1, 20), blocks=st.integers(2, 6))
def test_later_blocks_are_selected_from_whatever_the_first_ones_held(
    engine: Engine, seed: int, k: int, blocks: int
) -> None:
    """Scores of one block may all exceed those before, or none, or equal the least kept."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, blocks)
    parts = [rng.integers(-3, 3) + rng.integers(0, 3, (2, 3, size)) for size in sizes]
    scores = np.concatenate(parts, axis=2).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    scores[rng.random(scores.shape) < 0.02] = np.nan
    assert_running(engine, scores, k, [0, *np.cumsum(sizes).tolist()])
