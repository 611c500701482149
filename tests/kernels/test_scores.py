"""What every engine makes of scores one by one and row by row is what Python's floats give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.kernels.engines import Engine
from tests.kernels.stacks import as_laid_out, lay_out, layouts, precisions
from tests.oracles import assert_close, assert_same_bits
from tests.strategies import seeds

shapes = st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(0, 6))
SPECIAL = st.sampled_from([-math.inf, -math.inf, math.inf, math.nan, 0.0, -0.0])


@st.composite
def scores_GCN(draw: st.DrawFn, special: bool = True) -> np.ndarray:
    """Scores of a few heads, in either precision, with NaN, infinities and zeros or without."""
    numbers = st.integers(-30, 30).map(lambda n: n / 8)
    elements = numbers | SPECIAL if special else numbers
    dtype = draw(precisions)
    return draw(hnp.arrays(dtype, draw(shapes), elements=elements, fill=st.nothing()))


def loops(function: Any, *arrays: np.ndarray) -> np.ndarray:
    """A function of Python's floats, element by element."""
    elements = [
        function(*map(float, found)) for found in zip(*(a.flat for a in arrays), strict=True)
    ]
    return np.asarray(elements, arrays[0].dtype).reshape(arrays[0].shape)


@given(
    sizes=st.tuples(*(st.integers(0, most) for most in (4, 5, 3))),
    heads=st.integers(1, 3),
    query_layout=layouts,
    key_layout=layouts,
    scale=st.sampled_from([1.0, 0.3, -2.0, 1e-3, 0.0]),
    dtype=precisions,
    seed=seeds,
)
def test_product_is_the_scaled_product_with_the_transposed_keys(
    engine: Engine,
    sizes: tuple[int, int, int],
    heads: int,
    query_layout: str,
    key_layout: str,
    scale: float,
    dtype: str,
    seed: int,
) -> None:
    queries, keys, width = sizes
    rng = np.random.default_rng(seed)
    query = as_laid_out(rng.standard_normal((heads, queries, width)), query_layout).astype(dtype)
    key = as_laid_out(rng.standard_normal((heads, keys, width)), key_layout).astype(dtype)
    key[:, 2:3] = math.nan
    expected = np.zeros((heads, queries, keys))
    for g, i, j in np.ndindex(expected.shape):
        expected[g, i, j] = scale * sum(map(float, query[g, i].astype(float) * key[g, j]))
    laid_out = lay_out(engine, query, query_layout), lay_out(engine, key, key_layout)
    result = engine.call("product", *laid_out, scale, {}, "scores")
    assert_close(result, expected.astype(dtype), size=10)


@given(data=st.data(), scale=st.sampled_from([1.0, 0.3]))
def test_products_of_one_thread_share_memory_only_under_one_name(
    engine: Engine, data: st.DataObject, scale: float
) -> None:
    """Two names are in use at a time, of sizes that grow and shrink from chunk to chunk."""
    scratch: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for heads, queries, keys in data.draw(st.lists(shapes, min_size=1, max_size=4)):
        pairs = []
        for name in ("scores", "linear"):
            dtype = data.draw(precisions)
            query = rng.standard_normal((heads, queries, 3)).astype(dtype)
            key = rng.standard_normal((heads, keys, 3)).astype(dtype)
            given = engine.given(query), engine.given(key), scale, scratch, name
            pairs.append((engine.module.product(*given), scale * (query @ key.mT)))
        for result, expected in pairs:
            assert_close(engine.answer(result), expected.astype(expected.dtype), size=10)


def test_equal_products_are_equal_scores_whatever_the_scale(engine: Engine) -> None:
    query = np.asarray([[[1.0, 2.0, 3.0]]], np.float32)
    key = np.asarray([[[3.0, 0.0, 1.0], [0.0, 0.0, 2.0], [1.0, 1.0, 1.0], [0.0, 3.0, 0.0]]])
    scores = engine.call("product", query, key.astype(np.float32), 1 / math.sqrt(3), {}, "scores")
    assert len(np.unique(scores)) == 1


@given(scores=scores_GCN(), data=st.data())
def test_hide_sets_what_is_not_allowed_to_minus_inf(
    engine: Engine, scores: np.ndarray, data: st.DataObject
) -> None:
    shape = tuple(data.draw(st.sampled_from([1, length])) for length in scores.shape)
    allowed = data.draw(hnp.arrays(bool, shape))
    hidden = engine.module.hide(engine.own(scores), engine.given(allowed))
    np.testing.assert_array_equal(engine.answer(hidden), np.where(allowed, scores, -np.inf))


edges = st.integers(-7, 8)


@given(scores=scores_GCN(), each=st.booleans(), data=st.data())
def test_hide_outside_leaves_a_band_along_the_diagonal_of_each_head(
    engine: Engine, scores: np.ndarray, each: bool, data: st.DataObject
) -> None:
    heads = len(scores)
    first, last = (data.draw(hnp.arrays(np.int64, heads, elements=edges)) for _ in range(2))
    band: tuple[Any, Any] = first, last
    if not each:
        band = int(first[0]), int(last[0])
        first, last = (np.full(heads, edge) for edge in band)
    expected = scores.copy()
    for g, i, j in np.ndindex(scores.shape):
        if not first[g] + i <= j <= last[g] + i:
            expected[g, i, j] = -np.inf
    hidden = engine.module.hide_outside(engine.own(scores), *band)
    np.testing.assert_array_equal(engine.answer(hidden), expected)


@given(scores=scores_GCN())
def test_tanh_is_that_of_every_score(engine: Engine, scores: np.ndarray) -> None:
    result = engine.answer(engine.module.tanh(engine.own(scores)))
    assert_close(result, loops(math.tanh, scores))


@given(scores=scores_GCN())
def test_erf_is_that_of_every_score(engine: Engine, scores: np.ndarray) -> None:
    assert_close(engine.call("erf", scores), loops(math.erf, scores))


@given(
    heads=st.integers(1, 3),
    rows=st.integers(1, 5),
    columns=st.integers(1, 6),
    dtype=precisions,
)
def test_toeplitz_repeats_each_diagonal(
    engine: Engine, heads: int, rows: int, columns: int, dtype: str
) -> None:
    diagonals = np.random.default_rng(0).standard_normal((heads, rows - 1 + columns))
    diagonals = diagonals.astype(dtype)
    expected = np.empty((heads, rows, columns), dtype)
    for g, i, j in np.ndindex(expected.shape):
        expected[g, i, j] = diagonals[g, j - i + rows - 1]
    assert_same_bits(np.array(engine.call("toeplitz", diagonals, rows)), expected)


@given(scores=scores_GCN(), special=st.booleans(), seed=seeds)
def test_zero_hidden_leaves_no_nan_where_the_score_is_minus_inf(
    engine: Engine, scores: np.ndarray, special: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal(scores.shape).astype(scores.dtype)
    if special:
        matrix[rng.random(scores.shape) < 0.3] = rng.choice([math.nan, math.inf])
    hidden, result = scores == -np.inf, engine.call("zero_hidden", matrix, scores)
    assert result.dtype == matrix.dtype
    np.testing.assert_array_equal(result[~hidden], matrix[~hidden])
    # What is finite may stay: it is multiplied by a 0 later on.
    left = result[hidden] == matrix[hidden]
    assert (left & np.isfinite(matrix[hidden]) | (result[hidden] == 0)).all()


@given(scores=scores_GCN())
def test_relu_keeps_what_is_above_zero_and_nan(engine: Engine, scores: np.ndarray) -> None:
    expected = loops(lambda score: 0.0 if score <= 0 else score, scores)
    np.testing.assert_array_equal(engine.call("relu", scores), expected)
    dweights = np.random.default_rng(0).standard_normal(scores.shape).astype(scores.dtype)
    dweights[scores < 0] = math.nan
    expected = loops(lambda score, dweight: 0.0 if score <= 0 else dweight, scores, dweights)
    np.testing.assert_array_equal(engine.call("relu_vjp", scores, dweights), expected)


def softmax_of_row(row: list[float]) -> list[float]:
    """All NaN if there is a NaN or +inf, all 0 if there is nothing but -inf."""
    largest = max(row, default=-math.inf)
    if any(math.isnan(score) or score == math.inf for score in row):
        return [math.nan] * len(row)
    if largest == -math.inf:
        return [0.0] * len(row)
    weights = [math.exp(score - largest) for score in row]
    return [weight / math.fsum(weights) for weight in weights]


@given(scores=scores_GCN(), size=st.sampled_from([1.0, 100.0, 2.0**60]))
def test_softmax_is_that_of_every_row(engine: Engine, scores: np.ndarray, size: float) -> None:
    scores = scores * scores.dtype.type(size)
    rows = [softmax_of_row(row) for row in scores.reshape(-1, max(scores.shape[2], 1)).tolist()]
    expected = np.asarray(rows, scores.dtype).reshape(scores.shape)
    assert_close(engine.call("softmax", scores), expected)


@given(scores=scores_GCN(special=False), seed=seeds)
def test_softmax_vjp_is_weights_times_what_exceeds_the_mean(
    engine: Engine, scores: np.ndarray, seed: int
) -> None:
    weights = np.abs(scores)
    dweights = np.random.default_rng(seed).standard_normal(scores.shape).astype(scores.dtype)
    wide = weights.astype(float) * dweights
    expected = wide - weights * wide.sum(axis=2, keepdims=True)
    result = engine.call("softmax_vjp", weights, dweights)
    assert_close(result, expected.astype(scores.dtype), size=300)


@pytest.mark.parametrize("columns", [33, 1025, 5000])
def test_softmax_of_wide_rows_adds_up_to_one(engine: Engine, columns: int) -> None:
    scores = np.random.default_rng(0).normal(scale=5, size=(2, 3, columns))
    scores[1, 2, 1:] = -np.inf
    weights = engine.call("softmax", scores)
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-12)
    np.testing.assert_array_equal(weights[1, 2, 1:], 0)
    dscores = engine.call("softmax_vjp", weights, scores.clip(-9, 9))
    np.testing.assert_allclose(dscores.sum(axis=2), 0, atol=1e-12)
