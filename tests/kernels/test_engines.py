"""Every engine selects what plain Python says, and all engines are called alike."""

from __future__ import annotations

import ast
import inspect
import math
import tracemalloc
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import topk_np.kernels.numpy
import topk_np.kernels.portable
from tests.backends import Backend
from tests.kernels.engines import Engine, each_engine
from tests.oracles import select_by_sorting
from tests.strategies import scores_CN
from topk_np._namespace import array_namespace
from topk_np.kernels import Selection, engine

PRIMITIVES = (
    "matmul",
    "hide",
    "hide_outside",
    "tanh",
    "select",
    "select_above",
    "floor_of",
    "take_slots",
    "gather_matmul",
    "sampled_matmul",
    "scatter_matmul",
    "add_slots",
    "masked_matmul",
    "softmax",
    "softmax_vjp",
    "threefry",
)


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
each_k = pytest.mark.parametrize("k", [1, 8, 100, 300])
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
@given(scores=scores_CN(), k=st.integers(1, 14), data=st.data())
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
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_is_selected_from_no_scores(engine: Engine, shape: tuple[int, int]) -> None:
    scores, floor = np.zeros(shape), np.zeros(shape[0])
    for found in (engine.call("select", scores, 2), engine.call("select_above", scores, 2, floor)):
        assert found.values.shape[0] == found.counts.shape[0] == shape[0]
        assert found.counts.sum() == 0


@each_engine
def test_select_treats_both_zeros_as_equal(engine: Engine) -> None:
    scores = np.asarray([[-0.0, 0.0, -0.0, 0.0], [0.0, -0.0, 0.0, -0.0]])
    assert engine.call("select", scores, 2).indices.tolist() == [[0, 1], [0, 1]]


@each_engine
def test_select_ranks_nan_above_inf_and_earlier_nan_first(engine: Engine) -> None:
    scores = np.asarray([[math.inf, math.nan, 1.0, -math.nan, math.nan]])
    assert engine.call("select", scores, 2).indices.tolist() == [[1, 3]]
    assert engine.call("select", scores, 4).indices.tolist() == [[0, 1, 3, 4]]


def test_slots_are_taken_without_a_copy_of_scores_that_lie_apart() -> None:
    scores = np.random.default_rng(0).standard_normal((300, 1040)).astype(np.float32)[:, :1024]
    indices = np.tile(np.asarray([3, 1023, -1], np.int32), (300, 1))
    tracemalloc.start()
    try:
        taken = topk_np.kernels.numpy.take_slots(scores, indices)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(taken[:, :2], scores[:, [3, 1023]])
    assert not taken[:, 2].any()
    assert peak < scores.nbytes / 10


@pytest.mark.parametrize("k", [2, 30])
@pytest.mark.parametrize("layout", ["apart", "columns", "transposed", "backwards", "repeated"])
def test_select_takes_scores_however_they_lie_in_memory(layout: str, k: int) -> None:
    memory = np.random.default_rng(0).standard_normal((9, 200)).astype(np.float32)
    scores = {
        "apart": memory[:, :190],
        "columns": memory[:, ::2],
        "transposed": np.asfortranarray(memory),
        "backwards": memory[::-1, 1::],
        "repeated": np.broadcast_to(memory[0], memory.shape),
    }[layout]
    floor = np.zeros(9, np.float32)
    for name, more in (("select", ()), ("select_above", (floor,))):
        function = getattr(topk_np.kernels.numpy, name)
        expected = function(np.ascontiguousarray(scores), k, *more)
        for found, wanted in zip(function(scores, k, *more), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@each_engine
@pytest.mark.parametrize("rows", [3, 200])
def test_rows_of_equal_scores_give_their_first(engine: Engine, rows: int) -> None:
    result = engine.call("select", np.ones((rows, 100)), 10)
    assert result.indices.tolist() == [list(range(10))] * rows


def test_many_equal_scores_are_selected_from_with_little_memory() -> None:
    """With one copy of the scores, but not with the place and the value of each that is equal."""
    scores = np.zeros((100, 150))
    scores[:, :100] = 1.0
    topk_np.kernels.numpy.select(scores, 10)  # the first time something is imported
    tracemalloc.start()
    try:
        topk_np.kernels.numpy.select(scores, 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * scores.nbytes


@each_engine
@given(seed=st.integers(0, 2**32 - 1), columns=st.integers(1, 300), k=st.integers(1, 40))
def test_at_least_k_scores_of_a_row_exceed_the_floor_of_k(
    engine: Engine, seed: int, columns: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-9, 9, size=(3, columns)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    scores[rng.random(scores.shape) < 0.02] = np.nan
    k = min(k, columns)
    floor = engine.call("floor_of", scores, k)
    above = np.count_nonzero(~(scores <= floor[:, None]), axis=1)
    assert np.all(above >= np.minimum(k, np.count_nonzero(scores != -np.inf, axis=1)))


def functions(module: str) -> dict[str, list[str]]:
    """The public functions of an engine and their parameters, read without importing it."""
    source = files("topk_np.kernels").joinpath(f"{module}.py").read_text()
    return {
        node.name: [parameter.arg for parameter in node.args.args]
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def test_engines_have_the_same_functions_with_the_same_parameters() -> None:
    expected = functions("portable")
    assert sorted(expected) == sorted(PRIMITIVES)
    for name in PRIMITIVES:
        signature = inspect.signature(getattr(topk_np.kernels.numpy, name))
        assert list(signature.parameters) == expected[name]
    expected["scatter_matmul_atomic"] = expected["scatter_matmul"]
    assert functions("cupy") == expected
    source = files("topk_np.kernels").joinpath("cupy_atomic.py").read_text()
    exported = ast.parse(source).body[-1]
    assert isinstance(exported, ast.Assign)
    assert ast.literal_eval(exported.value) == ["Finds", *sorted(PRIMITIVES)]


def test_each_library_gets_its_own_engine_and_others_the_portable_one(xp: Backend) -> None:
    expected = {"numpy": "numpy", "cupy": "cupy"}.get(xp.name, "portable")
    assert engine(array_namespace(xp.asarray(np.ones(1)))).__name__ == f"topk_np.kernels.{expected}"


def test_the_portable_engine_can_be_forced(xp: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_NP_KERNELS", "portable")
    assert engine(array_namespace(xp.asarray(np.ones(1)))) is topk_np.kernels.portable


def test_atomic_sums_are_an_option_for_cupy_alone(
    xp: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = array_namespace(xp.asarray(np.ones(1)))
    own = engine(namespace).__name__
    monkeypatch.setenv("TOPK_NP_KERNELS", "atomic")
    assert engine(namespace).__name__ == own + ("_atomic" if xp.name == "cupy" else "")


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_NP_KERNELS", "fastest")
    with pytest.raises(ValueError, match="'portable' or 'atomic', got 'fastest'"):
        engine(np)
