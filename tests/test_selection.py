"""`top_k` is a plain selection: what a sorted list gives, along any axis."""

from __future__ import annotations

import itertools
import math
import sys
import tracemalloc
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import topk_np
from tests.backends import NUMPY, Backend
from tests.oracles import assert_same_bits, descending, select_by_sorting
from tests.strategies import scores_CN, seeds
from topk_np._namespace import array_namespace
from topk_np.kernels import engine

floats = st.integers(-2, 2).map(float) | st.sampled_from([math.nan, math.inf, -math.inf, -0.0])


def ranked(row: list[float], k: int) -> list[int]:
    """Indices of the k largest, NaN first, larger before smaller, lower index first."""
    return sorted(range(len(row)), key=lambda j: descending(row[j], j))[:k]


@given(data=st.data(), k=st.integers(1, 6))
def test_top_k_is_the_head_of_a_sorted_list_along_any_axis(
    xp: Backend, data: st.DataObject, k: int
) -> None:
    dtype = data.draw(st.sampled_from(xp.dtypes))
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=5))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = data.draw(hnp.arrays(dtype, shape, elements=floats, fill=st.nothing()))

    result = topk_np.top_k(xp.asarray(x), k, axis=axis)
    values, indices = xp.to_numpy(result.values), xp.to_numpy(result.indices)
    size = min(k, shape[axis])
    assert values.dtype == x.dtype
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(values, np.take_along_axis(x, indices, axis))
    rows = np.moveaxis(x, axis, -1).reshape(-1, shape[axis])
    found = np.moveaxis(indices, axis, -1).reshape(-1, size)
    for row, one in zip(rows, found, strict=True):
        assert one.tolist() == ranked(row.tolist(), size)


@given(scores=scores_CN(), k=st.integers(1, 14))
def test_unsorted_top_k_takes_the_same_entries_by_ascending_index(
    xp: Backend, scores: np.ndarray, k: int
) -> None:
    best = topk_np.top_k(xp.asarray(scores), k)
    unsorted = topk_np.top_k(xp.asarray(scores), k, sorted=False)
    indices = xp.to_numpy(unsorted.indices)
    np.testing.assert_array_equal(indices, np.sort(xp.to_numpy(best.indices), axis=-1))
    assert_same_bits(
        np.ascontiguousarray(xp.to_numpy(unsorted.values)),
        np.take_along_axis(scores, indices, axis=-1),
    )


def test_top_k_returns_minus_inf_like_any_value(xp: Backend) -> None:
    x = np.asarray([-math.inf, 1.0, -math.inf, -math.inf])
    result = topk_np.top_k(xp.asarray(x), 3)
    assert xp.to_numpy(result.indices).tolist() == [1, 0, 2]
    assert xp.to_numpy(result.values).tolist() == [1.0, -math.inf, -math.inf]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_rows_are_sorted_with_the_lower_index_first_among_equals(
    xp: Backend, dtype: str
) -> None:
    x = np.random.default_rng(0).integers(0, 5, (2, 500)).astype(dtype)
    x[:, ::7] = np.nan
    values, indices = (xp.to_numpy(a) for a in topk_np.top_k(xp.asarray(x), 400))
    order = np.argsort(np.where(np.isnan(x), -np.inf, -x), axis=1, kind="stable")[:, :400]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, axis=1))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3), (0, 0)])
def test_top_k_of_nothing_is_empty(xp: Backend, shape: tuple[int, ...]) -> None:
    result = topk_np.top_k(xp.asarray(np.zeros(shape)), 2)
    assert result.values.shape == result.indices.shape == (*shape[:-1], min(2, shape[-1]))


def test_top_k_keeps_half_precision_values_as_they_are() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        x = np.asarray([1.0, 1.5, 0.25, 1.5]).astype(dtype)
        values, indices = topk_np.top_k(x, 2)
        assert values.dtype == dtype
        assert values.tolist() == [1.5, 1.5]
        assert indices.tolist() == [1, 3]


def test_top_k_takes_numpy_integers(xp: Backend) -> None:
    x = xp.asarray(np.asarray([[1.0, 2.0]]))
    result = topk_np.top_k(x, np.int32(1), axis=np.int64(0))  # type: ignore[arg-type]
    assert xp.to_numpy(result.indices).tolist() == [[0, 0]]


def test_top_k_does_not_alias_its_input() -> None:
    x = np.arange(6.0).reshape(2, 3)
    for is_sorted in (True, False):
        values, _ = topk_np.top_k(x, 3, sorted=is_sorted)
        assert not np.shares_memory(values, x)


def select(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and indices (C, K) of the k largest of each row of scores (C, N)."""
    values, indices = engine(np).select(scores[None, ...], k)
    return values[0], indices[0]


def k_best(xp: Backend, scores: np.ndarray, k: int, edges: Sequence[int]) -> Any:
    """The running top k of scores (C, N) that come in blocks between `edges`."""
    ops = engine(array_namespace(xp.asarray(scores)))
    best = ops.RunningTopK(k, scores.shape[1])
    for start, stop in itertools.pairwise(edges):
        best.add(xp.asarray(scores[None, :, start:stop]), start)
    return best


def assert_best(xp: Backend, best: Any, scores: np.ndarray, k: int) -> None:
    """Assert that what was found in blocks is what one selection finds."""
    values, indices = (xp.to_numpy(array)[0] for array in best.result(min(k, scores.shape[1])))
    expected_values, expected = select(scores, k)
    assert_same_bits(indices, expected)
    np.testing.assert_array_equal(values, expected_values)


def blocks(columns: int, size: int) -> list[int]:
    """Edges of blocks of a size."""
    return [*range(0, columns, size), columns]


def test_selection_never_takes_minus_inf_but_top_k_does() -> None:
    scores = np.asarray([[-math.inf, 2.0, -math.inf]])
    assert select(scores, 2)[1].tolist() == [[1, -1]]
    assert topk_np.top_k(scores, 2, sorted=False).indices.tolist() == [[0, 1]]


def test_rows_of_nan_and_rows_of_fewer_than_k_may_be_neighbours() -> None:
    scores = np.asarray([[math.nan, math.nan, 1.0], [2.0, -math.inf, -math.inf]])
    assert select(scores, 2)[1].tolist() == [[0, 1], [0, -1]]
    assert select(scores[::-1], 2)[1].tolist() == [[0, -1], [0, 1]]


@given(data=st.data(), k=st.integers(1, 6), width=st.integers(0, 2))
def test_the_k_best_of_blocks_are_those_of_one_selection(
    xp: Backend, data: st.DataObject, k: int, width: int
) -> None:
    heads, rows, columns = (data.draw(st.integers(1, most)) for most in (2, 4, 30))
    elements = data.draw(st.sampled_from([floats, st.integers(-9, 9).map(float)]))
    scores = data.draw(hnp.arrays(np.float64, (heads, rows, columns), elements=elements))
    others = np.random.default_rng(0).standard_normal((width, heads, rows, columns))
    edges = sorted(data.draw(st.sets(st.integers(1, columns), max_size=8)) | {0, columns})
    best = engine(array_namespace(xp.asarray(scores))).RunningTopK(k, columns)
    for start, stop in itertools.pairwise(edges):
        block = slice(start, stop)
        best.add(*xp.arrays(scores[..., block]), start, *xp.arrays(*others[..., block]))
    values, indices, *kept = (xp.to_numpy(array) for array in best.result(min(k, columns)))

    for head, row in np.ndindex(heads, rows):
        chosen = select_by_sorting(scores[head, row].tolist(), k)
        unused = [-1] * (min(k, columns) - len(chosen))
        assert indices[head, row].tolist() == chosen + unused
    for array, other, fill in zip(
        (values, *kept), (scores, *others), (-np.inf, *[0.0] * width), strict=True
    ):
        taken = np.take_along_axis(other, np.maximum(indices, 0), axis=2)
        np.testing.assert_array_equal(array, np.where(indices < 0, fill, taken))


@pytest.mark.parametrize("order", ["rising", "falling", "equal", "rising to nan"])
def test_blocks_of_rising_falling_and_equal_scores_give_the_k_best(xp: Backend, order: str) -> None:
    """Rising scores beat the floor in every block, equal ones never after the first."""
    columns, k = 400, 7
    row = np.arange(columns, dtype=np.float64)
    row = {"rising": row, "falling": -row, "equal": row * 0, "rising to nan": row}[order]
    if order == "rising to nan":
        row[-3:] = np.nan
    scores = np.stack([row, np.roll(row, 13), np.where(np.arange(columns) % 3, row, -np.inf)])
    best = k_best(xp, scores, k, blocks(columns, 40))
    values, indices = (xp.to_numpy(array)[0] for array in best.result(k))
    for line, found, kept in zip(scores, indices, values, strict=True):
        chosen = select_by_sorting(line.tolist(), k)
        assert found.tolist() == chosen
        np.testing.assert_array_equal(kept, line[chosen])


@given(
    seed=seeds,
    k=st.integers(1, 40),
    size=st.integers(1, 40),
    levels=st.sampled_from([3, 30, 10**6]),
    order=st.sampled_from(["chance", "rising", "falling"]),
    masked=st.integers(0, 5),
)
def test_long_rows_in_blocks_of_any_size_give_what_one_selection_gives(
    seed: int, k: int, size: int, levels: int, order: str, masked: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=(5, 200)).astype(float)
    scores[rng.random(scores.shape) < 0.002] = np.nan
    if order != "chance":
        scores.sort(axis=1)
    if order == "falling":
        scores = scores[:, ::-1]
    scores = np.concatenate([scores, np.full((5, masked), -np.inf)], axis=1)
    scores[0] = -np.inf  # a query that sees nothing
    best = k_best(NUMPY, scores, k, blocks(scores.shape[1], size))
    assert_best(NUMPY, best, scores, k)


def test_hits_of_blocks_are_merged_before_they_are_many_times_k() -> None:
    """Of rising scores every block has k that beat the floor."""
    rows, k, count = 400, 10, 100  # many, so that what objects themselves take is little
    scores = np.arange(count * k, dtype=np.float64) + np.zeros((rows, 1))
    k_best(NUMPY, scores, k, blocks(count * k, k))  # the first time something is imported
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        best = k_best(NUMPY, scores, k, blocks(count * k, k))
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert best.result(k)[1].tolist() == [[list(range((count - 1) * k, count * k))] * rows]
    assert held < 6 * rows * k * (8 + 4)


@pytest.mark.parametrize("rising", [1, 30], ids=["one-row", "all-rows"])
def test_a_block_may_have_many_times_k_that_beat_the_floor(rising: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(50, size=(30, 1200)).astype(float)
    scores[:rising] = np.arange(1200.0) // 3
    assert_best(NUMPY, k_best(NUMPY, scores, 4, blocks(1200, 300)), scores, 4)


def test_rising_scores_are_not_looked_for_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is slow, and for rows in which many are equal."""
    for name in ("running", "select"):
        monkeypatch.delattr(sys.modules[f"topk_np.kernels.numpy.{name}"], "select_by_row")
    scores = np.arange(3000.0) + np.random.default_rng(0).standard_normal((9, 1))
    best = k_best(NUMPY, scores, 20, blocks(3000, 550))
    assert best.result(20)[1].tolist() == [[list(range(2980, 3000))] * 9]


def test_a_row_with_many_hits_does_not_make_slots_for_all() -> None:
    rows, columns, k = 400, 4000, 4
    scores = np.zeros((rows, columns))
    scores[0] = np.arange(columns) - columns / 2
    best = k_best(NUMPY, scores, k, blocks(columns, columns // 2))
    tracemalloc.start()
    try:
        best.result(k)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < rows * columns * 8 / 20


def test_slots_without_an_index_are_taken_as_zero(xp: Backend) -> None:
    matrix = np.asarray([[[1.0, 2.0, np.nan], [4.0, 5.0, 6.0]]])
    indices = np.asarray([[[0, -1], [2, 1]]], np.int32)
    ops = engine(array_namespace(xp.asarray(matrix)))
    taken = ops.take_slots(*xp.arrays(matrix, indices))
    assert xp.to_numpy(taken).tolist() == [[[1.0, 0.0], [6.0, 5.0]]]
    none = ops.take_slots(*xp.arrays(matrix[..., :0], indices))
    assert xp.to_numpy(none).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_blocks_without_rows_have_nothing_that_is_best(xp: Backend) -> None:
    values, indices = k_best(xp, np.zeros((0, 12)), 3, blocks(12, 4)).result(3)
    assert values.shape == indices.shape == (1, 0, 3)
