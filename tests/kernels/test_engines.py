"""Every engine computes what the plain Python definitions of the four primitives say."""

from __future__ import annotations

import inspect
import math
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import topk_np.kernels.numpy
import topk_np.kernels.portable
from tests.backends import Backend, selected_backends
from tests.oracles import assert_close, select_by_sorting
from tests.strategies import scores_CN, seeds, sparse_CK_of_N
from topk_np.kernels import Selection, engine

PRIMITIVES = (
    "matmul",
    "select",
    "select_above",
    "gather_matmul",
    "sampled_matmul",
    "scatter_matmul",
)


class Engine(NamedTuple):
    module: ModuleType
    backend: Backend

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a primitive on NumPy arrays; floating-point warnings are the caller's business."""
        given = [self.backend.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
        with np.errstate(all="ignore"):
            result = getattr(self.module, name)(*given)
        if isinstance(result, tuple):
            return type(result)(*(self.backend.to_numpy(array) for array in result))
        return self.backend.to_numpy(result)


def engines() -> list[Any]:
    """Each engine with each array library it takes."""
    found = []
    for backend in selected_backends():
        if backend.name == "numpy":
            found.append(pytest.param(Engine(topk_np.kernels.numpy, backend), id="numpy"))
        name = f"portable-{backend.name}"
        found.append(pytest.param(Engine(topk_np.kernels.portable, backend), id=name))
    return found


each_engine = pytest.mark.parametrize("engine", engines())


def assert_selection(result: Selection, scores: np.ndarray, k: int) -> None:
    """Assert that a selection is, row by row, what a sorted list gives."""
    size = min(k, scores.shape[1])
    assert result.values.dtype == scores.dtype
    assert result.indices.dtype == np.int32
    assert result.counts.dtype == np.int32
    assert result.values.shape == result.indices.shape == (len(scores), size)
    assert result.counts.shape == (len(scores),)
    for row, values, indices, count in zip(scores, *result, strict=True):
        chosen = select_by_sorting(row.tolist(), k)
        assert count == len(chosen)
        assert indices.tolist() == chosen + [-1] * (size - count)
        np.testing.assert_array_equal(values[:count], row[chosen])
        assert (values[count:] == -math.inf).all()


@each_engine
@given(scores=st.sampled_from(["float32", "float64"]).flatmap(scores_CN), k=st.integers(1, 14))
def test_select_takes_what_a_sorted_list_gives(engine: Engine, scores: np.ndarray, k: int) -> None:
    assert_selection(engine.call("select", scores, k), scores, k)


def wide_scores(columns: int, levels: int, seed: int) -> np.ndarray:
    """Rows of few or many different values: plain, half masked, with NaN, rising, all masked."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (6, columns)).astype(np.float32)
    scores[1, rng.random(columns) < 0.5] = -np.inf
    scores[2, rng.random(columns) < 0.01] = np.nan
    scores[3] = np.sort(scores[3])
    scores[4] = -np.inf
    scores[5, rng.random(columns) < 0.99] = -np.inf
    return scores


def best_by_lexsort(row: np.ndarray, k: int) -> list[int]:
    """`select_by_sorting`, quick for long rows."""
    falling = np.where(np.isnan(row), 0, -row)
    order = np.lexsort((np.arange(len(row)), falling, ~np.isnan(row)))
    return sorted(order[row[order] != -np.inf][:k].tolist())


each_width = pytest.mark.parametrize("columns", [1, 63, 4099])
each_k = pytest.mark.parametrize("k", [1, 8, 300])
each_levels = pytest.mark.parametrize("levels", [1, 30, 10**6])


@each_engine
@each_width
@each_k
@each_levels
def test_select_takes_lower_indices_first_in_wide_rows(
    engine: Engine, columns: int, k: int, levels: int
) -> None:
    scores = wide_scores(columns, levels, seed=columns + k + levels)
    result = engine.call("select", scores, k)
    assert result.values.shape == result.indices.shape == (6, min(k, columns))
    for row, values, indices, count in zip(scores, *result, strict=True):
        chosen = best_by_lexsort(row, k)
        assert indices.tolist() == chosen + [-1] * (len(indices) - count)
        np.testing.assert_array_equal(values[:count], row[chosen])
        assert (values[count:] == -np.inf).all()


@each_engine
@each_width
@each_k
@each_levels
@pytest.mark.parametrize("quantile", [0.2, 0.99])
def test_select_above_takes_the_best_of_what_exceeds_the_floor(
    engine: Engine, columns: int, k: int, levels: int, quantile: float
) -> None:
    scores = wide_scores(columns, levels, seed=columns + k + levels)
    finite = np.where(np.isfinite(scores), scores, 0)
    floor = np.quantile(finite, quantile, axis=1, method="lower").astype(scores.dtype)
    floor[3], floor[5] = -np.inf, np.inf
    result = engine.call("select_above", scores, k, floor)
    assert result.values.shape[1] <= min(k, columns)
    for row, least, values, indices, count in zip(scores, floor, *result, strict=True):
        chosen = best_by_lexsort(np.where(row <= least, -np.inf, row), k)
        assert indices.tolist() == chosen + [-1] * (len(indices) - count)
        np.testing.assert_array_equal(values[:count], row[chosen])
        assert (values[count:] == -np.inf).all()


@each_engine
@given(scores=scores_CN(least=1), k=st.integers(1, 14), data=st.data())
def test_select_above_takes_what_a_sorted_list_gives(
    engine: Engine, scores: np.ndarray, k: int, data: st.DataObject
) -> None:
    bounds = st.integers(-3, 3).map(float) | st.sampled_from([-math.inf, math.inf])
    floor = data.draw(hnp.arrays(scores.dtype, len(scores), elements=bounds))
    result = engine.call("select_above", scores, k, floor)
    expected = engine.call("select", np.where(scores <= floor[:, None], -np.inf, scores), k)
    width = result.values.shape[1]
    np.testing.assert_array_equal(result.counts, expected.counts)
    np.testing.assert_array_equal(result.indices, expected.indices[:, :width])
    np.testing.assert_array_equal(result.values, expected.values[:, :width])


@each_engine
@pytest.mark.parametrize("layout", ["plain", "transposed", "every other", "reversed"])
def test_matmul_is_the_product_with_the_transposed_keys(engine: Engine, layout: str) -> None:
    rng = np.random.default_rng(0)
    rows, keys = rng.standard_normal((3, 4)), rng.standard_normal((5, 4))
    laid_out = {
        "plain": keys,
        "transposed": np.asfortranarray(keys),
        "every other": np.repeat(keys, 2, axis=1)[:, ::2],
        "reversed": keys[::-1].copy()[::-1],
    }[layout]
    scratch = np.full((3, 5), np.nan) if engine.backend.name == "numpy" else None
    given = engine.backend.arrays(rows, laid_out)
    result = engine.backend.to_numpy(engine.module.matmul(*given, scratch))
    assert_close(result, rows @ keys.T, size=10)


@each_engine
def test_select_treats_both_zeros_as_equal(engine: Engine) -> None:
    scores = np.asarray([[-0.0, 0.0, -0.0, 0.0], [0.0, -0.0, 0.0, -0.0]])
    assert engine.call("select", scores, 2).indices.tolist() == [[0, 1], [0, 1]]


@each_engine
def test_select_ranks_nan_above_inf_and_earlier_nan_first(engine: Engine) -> None:
    scores = np.asarray([[math.inf, math.nan, 1.0, -math.nan, math.nan]])
    assert engine.call("select", scores, 2).indices.tolist() == [[1, 3]]
    assert engine.call("select", scores, 4).indices.tolist() == [[0, 1, 3, 4]]


def sparse_problem(seed: int, indices: np.ndarray, counts: np.ndarray, columns: int) -> Any:
    """Weights, rows and values of a sparse product, with NaN wherever it must not be read."""
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1, 5))
    weights = rng.standard_normal(indices.shape)
    weights[indices == -1] = np.nan
    rows = rng.standard_normal((len(indices), width))
    rows[counts == 0] = np.nan
    values = rng.standard_normal((columns, width))
    values[np.setdiff1d(np.arange(columns), indices)] = np.nan
    return weights, rows, values


@each_engine
@given(sparse=sparse_CK_of_N(), seed=seeds)
def test_gather_matmul_sums_the_used_slots_alone(
    engine: Engine, sparse: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    indices, counts, _ = sparse
    weights, _, values = sparse_problem(seed, *sparse)
    expected = np.zeros((len(indices), values.shape[1]))
    for i, count in enumerate(counts):
        for slot in range(count):
            expected[i] += weights[i, slot] * values[indices[i, slot]]
    assert_close(engine.call("gather_matmul", weights, indices, counts, values), expected, size=30)


@each_engine
@given(sparse=sparse_CK_of_N(), seed=seeds)
def test_sampled_matmul_is_the_dot_products_and_zero_in_unused_slots(
    engine: Engine, sparse: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    indices, counts, _ = sparse
    _, rows, values = sparse_problem(seed, *sparse)
    expected = np.zeros(indices.shape)
    for i, count in enumerate(counts):
        for slot in range(count):
            expected[i, slot] = math.fsum(rows[i] * values[indices[i, slot]])
    assert_close(engine.call("sampled_matmul", rows, values, indices, counts), expected, size=30)


@each_engine
@given(sparse=sparse_CK_of_N(), seed=seeds)
def test_scatter_matmul_adds_the_used_slots_to_out(
    engine: Engine, sparse: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    indices, counts, columns = sparse
    weights, rows, _ = sparse_problem(seed, *sparse)
    start = np.random.default_rng(seed).standard_normal((columns, rows.shape[1]))
    expected = start.copy()
    for i, count in enumerate(counts):
        for slot in range(count):
            expected[indices[i, slot]] += weights[i, slot] * rows[i]
    # The one array a primitive may write to: not handed over read-only.
    out = start.copy() if engine.backend.name == "numpy" else engine.backend.asarray(start)
    given = engine.backend.arrays(weights, indices, counts, rows)
    with np.errstate(all="ignore"):
        result = engine.module.scatter_matmul(*given, out)
    assert_close(engine.backend.to_numpy(result), expected, size=30)


@each_engine
@given(sparse=sparse_CK_of_N(), seed=seeds, data=st.data())
def test_scatter_matmul_of_a_range_adds_the_rows_of_the_whole(
    engine: Engine, sparse: tuple[np.ndarray, np.ndarray, int], seed: int, data: st.DataObject
) -> None:
    indices, counts, columns = sparse
    first = data.draw(st.integers(0, columns))
    last = data.draw(st.integers(first, columns))
    weights, rows, _ = sparse_problem(seed, *sparse)

    def scatter(length: int, start: int) -> np.ndarray:
        zeros = np.zeros((length, rows.shape[1]))
        out = zeros if engine.backend.name == "numpy" else engine.backend.asarray(zeros)
        given = engine.backend.arrays(weights, indices, counts, rows)
        with np.errstate(all="ignore"):
            return engine.backend.to_numpy(engine.module.scatter_matmul(*given, out, start))

    assert_close(scatter(last - first, first), scatter(columns, 0)[first:last], size=30)


@each_engine
@pytest.mark.parametrize("layout", ["plain", "transposed", "half"])
def test_products_take_values_of_any_layout_and_of_half_precision(
    engine: Engine, layout: str
) -> None:
    if layout == "half" and "float16" not in engine.backend.dtypes:
        return
    rng = np.random.default_rng(0)
    indices = np.asarray([[0, 3], [2, -1], [1, 4]], np.int32)
    counts = np.asarray([2, 1, 2], np.int32)
    weights = rng.standard_normal((3, 2)).astype(np.float32)
    values = rng.integers(-9, 9, (5, 3)).astype(np.float32)
    rows = rng.standard_normal((3, 3)).astype(np.float32)
    laid_out = values.astype("float16") if layout == "half" else values
    laid_out = np.asfortranarray(laid_out) if layout == "transposed" else laid_out
    got, expected = (
        (
            engine.call("gather_matmul", weights, indices, counts, matrix),
            engine.call("sampled_matmul", rows, matrix, indices, counts),
        )
        for matrix in (laid_out, values)
    )
    assert_close(got[0], expected[0], size=100)
    assert_close(got[1], expected[1], size=100)


@each_engine
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_the_rows_that_use_it_and_no_others(
    engine: Engine, poison: float
) -> None:
    indices = np.asarray([[0, 1], [1, 2], [2, -1], [-1, -1]], np.int32)
    counts = np.asarray([2, 2, 1, 0], np.int32)
    weights = np.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0], [0.0, 0.0]])
    values = np.asarray([[1.0, 1.0], [1.0, 1.0], [poison, 1.0]])
    rows = np.asarray([[1.0, 1.0], [1.0, poison], [1.0, 1.0], [poison, 1.0]])

    gathered = engine.call("gather_matmul", weights, indices, counts, values)
    assert_close(gathered, np.asarray([[3, 3], [3 + 4 * poison, 7], [5 * poison, 5], [0, 0]]))
    ones = np.ones((3, 2))
    sampled = engine.call("sampled_matmul", rows, ones, indices, counts)
    assert_close(sampled, np.asarray([[2, 2], [poison, poison], [2, 0], [0, 0]]))
    sampled = engine.call("sampled_matmul", np.ones((4, 2)), values, indices, counts)
    assert_close(sampled, np.asarray([[2, 2], [2, poison], [poison, 0], [0, 0]]))
    given = engine.backend.arrays(weights, indices, counts, rows)
    out = np.zeros((3, 2)) if engine.backend.name == "numpy" else engine.backend.asarray(ones * 0)
    with np.errstate(all="ignore"):
        scattered = engine.module.scatter_matmul(*given, out)
    expected = np.asarray([[1, 1], [5, 2 + 3 * poison], [9, 5 + 4 * poison]])
    assert_close(engine.backend.to_numpy(scattered), expected)


@each_engine
def test_a_used_slot_of_weight_zero_is_multiplied(engine: Engine) -> None:
    indices, counts = np.zeros((1, 1), np.int32), np.ones(1, np.int32)
    zero, values = np.zeros((1, 1)), np.asarray([[math.nan]])
    assert np.isnan(engine.call("gather_matmul", zero, indices, counts, values)).all()


def test_engines_have_the_same_functions_with_the_same_parameters() -> None:
    for name in PRIMITIVES:
        signatures = {
            tuple(inspect.signature(getattr(module, name)).parameters)
            for module in (topk_np.kernels.numpy, topk_np.kernels.portable)
        }
        assert len(signatures) == 1, name


def test_numpy_arrays_get_the_numpy_engine_and_others_the_portable_one(xp: Backend) -> None:
    expected = topk_np.kernels.numpy if xp.name == "numpy" else topk_np.kernels.portable
    assert engine(xp.xp) is expected


def test_the_portable_engine_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_NP_KERNELS", "portable")
    assert engine(np) is topk_np.kernels.portable


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_NP_KERNELS", "fastest")
    with pytest.raises(ValueError, match="TOPK_NP_KERNELS must be empty or 'portable', got 'fast"):
        engine(np)
