"""Every engine's products are what plain Python loops give, over the used slots alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_array

import topk_np.kernels.numpy
from tests.kernels.engines import Engine, each_engine
from tests.oracles import assert_close, assert_same_bits
from tests.strategies import seeds, sparse_CK_of_N
from topk_np.kernels.numpy_csr import by_column, csr

ONE_SLOT = np.array([[1], [0], [-1]], np.int32), np.array([1, 1, 0], np.int32), 2


@each_engine
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
@given(sparse=sparse_CK_of_N(), seed=seeds)
@example(sparse=ONE_SLOT, seed=0)
def test_add_slots_adds_the_used_slots_where_they_belong(
    engine: Engine, layout: Any, sparse: Any, seed: int
) -> None:
    indices, counts, columns = sparse
    weights, _, _ = sparse_problem(seed, indices, counts, columns)
    start = np.random.default_rng(seed).standard_normal((len(indices), columns))
    expected = start.copy()
    for i, j in zip(*np.nonzero(indices >= 0), strict=True):
        expected[i, indices[i, j]] += weights[i, j]
    out = own(engine, layout(start))
    given = engine.backend.arrays(weights, indices, counts)
    assert_close(engine.backend.to_numpy(engine.module.add_slots(*given, out)), expected)


@each_engine
def test_tanh_is_that_of_every_score(engine: Engine) -> None:
    scores = np.array([[-np.inf, -2.0, 0.0], [1e-3, 50.0, np.nan]])
    result = engine.module.tanh(own(engine, scores))
    assert_close(engine.backend.to_numpy(result), np.tanh(scores))


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


def own(engine: Engine, array: np.ndarray) -> Any:
    """An array that the engine may change: not handed over read-only."""
    return array.copy("K") if engine.backend.name == "numpy" else engine.backend.asarray(array)


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
@given(data=st.data(), rows=st.integers(1, 4), columns=st.integers(1, 5))
def test_hide_sets_what_is_not_allowed_to_minus_inf(
    engine: Engine, data: st.DataObject, rows: int, columns: int
) -> None:
    scores = np.random.default_rng(0).standard_normal((rows, columns))
    scores[0, 0] = np.nan
    shape = data.draw(st.sampled_from([(rows, columns), (1, columns), (rows, 1), (1, 1)]))
    allowed = data.draw(hnp.arrays(bool, shape))
    expected = np.where(allowed, scores, -np.inf)
    hidden = engine.module.hide(own(engine, scores), engine.backend.asarray(allowed))
    np.testing.assert_array_equal(engine.backend.to_numpy(hidden), expected)


@each_engine
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 6),
    first=st.integers(-6, 7),
    last=st.integers(-6, 7),
)
def test_hide_outside_leaves_a_band_along_the_diagonal(
    engine: Engine, rows: int, columns: int, first: int, last: int
) -> None:
    scores = np.random.default_rng(0).standard_normal((rows, columns))
    expected = scores.copy()
    for i, j in np.ndindex(scores.shape):
        if not first + i <= j <= last + i:
            expected[i, j] = -np.inf
    hidden = engine.module.hide_outside(own(engine, scores), first, last)
    np.testing.assert_array_equal(engine.backend.to_numpy(hidden), expected)


@each_engine
@given(sparse=sparse_CK_of_N(), seed=seeds)
@example(sparse=ONE_SLOT, seed=0)
def test_take_slots_reads_the_used_slots_and_is_zero_in_the_others(
    engine: Engine, sparse: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    indices, _, columns = sparse
    matrix = np.random.default_rng(seed).standard_normal((len(indices), columns))
    matrix[:, -1:] = np.nan  # where -1 points to
    taken = engine.call("take_slots", matrix, indices)
    for line, places, values in zip(matrix, indices, taken, strict=True):
        expected = [0.0 if j < 0 else line[j] for j in places]
        np.testing.assert_array_equal(values, expected)


layouts = st.sampled_from([np.ascontiguousarray, np.asfortranarray])


@each_engine
@given(sparse=sparse_CK_of_N(), seed=seeds, layout=layouts)
@example(sparse=ONE_SLOT, seed=0, layout=np.ascontiguousarray)
def test_gather_matmul_sums_the_used_slots_alone(
    engine: Engine, sparse: tuple[np.ndarray, np.ndarray, int], seed: int, layout: Any
) -> None:
    indices, counts, _ = sparse
    weights, _, values = sparse_problem(seed, *sparse)
    expected = np.zeros((len(indices), values.shape[1]))
    for i, count in enumerate(counts):
        for slot in range(count):
            expected[i] += weights[i, slot] * values[indices[i, slot]]
    result = engine.call("gather_matmul", weights, indices, counts, layout(values))
    assert_close(result, expected, size=30)


@each_engine
@given(sparse=sparse_CK_of_N(), seed=seeds, layout=layouts)
@example(sparse=ONE_SLOT, seed=0, layout=np.ascontiguousarray)
def test_sampled_matmul_is_the_dot_products_and_zero_in_unused_slots(
    engine: Engine, sparse: tuple[np.ndarray, np.ndarray, int], seed: int, layout: Any
) -> None:
    indices, counts, _ = sparse
    _, rows, values = sparse_problem(seed, *sparse)
    expected = np.zeros(indices.shape)
    for i, count in enumerate(counts):
        for slot in range(count):
            expected[i, slot] = math.fsum(rows[i] * values[indices[i, slot]])
    result = engine.call("sampled_matmul", rows, layout(values), indices, counts)
    assert_close(result, expected, size=30)


@each_engine
@given(sparse=sparse_CK_of_N(), seed=seeds)
@example(sparse=ONE_SLOT, seed=0)
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
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_what_is_not_finite_reaches_the_rows_that_use_it_and_no_others(
    engine: Engine, poison: float, layout: Any
) -> None:
    indices = np.asarray([[0, 1], [1, 2], [2, -1], [-1, -1]], np.int32)
    counts = np.asarray([2, 2, 1, 0], np.int32)
    weights = np.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0], [0.0, 0.0]])
    values = layout([[1.0, 1.0], [1.0, 1.0], [poison, 1.0]])
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
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
@pytest.mark.parametrize("poison", [0.0, math.nan, math.inf])
def test_masked_matmul_is_the_product_over_allowed_pairs_alone(
    engine: Engine, layout: Any, poison: float
) -> None:
    rng = np.random.default_rng(0)
    allowed = rng.random((5, 7)) < 0.5
    allowed[0], allowed[1] = True, False
    weights = np.where(allowed, rng.standard_normal((5, 7)), 0.0)
    values = rng.standard_normal((7, 3))
    values[2, 1] = values[6, 0] = poison
    expected = np.zeros((5, 3))
    for i, j in zip(*np.nonzero(allowed), strict=True):
        expected[i] += weights[i, j] * values[j]
    given = layout(weights), layout(allowed), layout(values)
    assert_close(engine.call("masked_matmul", *given), expected, size=10)


@each_engine
@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (3, 2, 0)])
def test_masked_matmul_of_nothing_is_zero(engine: Engine, shape: tuple[int, int, int]) -> None:
    rows, columns, width = shape
    given = np.ones((rows, columns)), np.ones((rows, columns), bool), np.ones((columns, width))
    np.testing.assert_array_equal(
        engine.call("masked_matmul", *given), np.full((rows, width), float(columns))
    )


@each_engine
def test_a_used_slot_of_weight_zero_is_multiplied(engine: Engine) -> None:
    indices, counts = np.zeros((1, 1), np.int32), np.ones(1, np.int32)
    zero, values = np.zeros((1, 1)), np.asarray([[math.nan]])
    assert np.isnan(engine.call("gather_matmul", zero, indices, counts, values)).all()


def test_numpy_adds_in_place_also_to_rows_with_gaps() -> None:
    whole = np.ones((5, 4))
    indices = np.asarray([[1, 3]], np.int32)
    rows = np.asarray([[1.0, 2.0]])
    out = topk_np.kernels.numpy.scatter_matmul(
        np.asarray([[1.0, 10.0]]), indices, np.asarray([2]), rows, whole[:, ::2]
    )
    assert np.shares_memory(out, whole)
    assert whole[:, ::2].tolist() == [[1, 1], [2, 3], [1, 1], [11, 21], [1, 1]]
    assert (whole[:, 1::2] == 1).all()


@given(sparse=sparse_CK_of_N(), seed=seeds)
def test_numpy_gives_the_same_bits_key_by_key_as_query_by_query(
    sparse: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    indices, counts, _ = sparse
    weights, rows, values = sparse_problem(seed, *sparse)
    numpy, runs = topk_np.kernels.numpy, []
    for cache in (0, 2**20):
        with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
            patch.setattr(numpy, "CACHE_BYTES", cache)
            gathered = numpy.gather_matmul(weights, indices, counts, values)
            scattered = numpy.scatter_matmul(weights, indices, counts, rows, np.ones_like(values))
            runs.append((gathered, scattered))
    for by_key, by_query in zip(*runs, strict=True):
        assert_same_bits(by_key, by_query)


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("last", [2, 3, 4])
def test_numpy_writes_to_no_row_outside_of_a_range(first: int, last: int) -> None:
    indices, counts = np.array([[1, 2], [2, 3]], np.int32), np.full(2, 2, np.int32)
    whole, expected = np.zeros((5, 1)), np.zeros((5, 1))
    given = np.ones((2, 2)), indices, counts, np.ones((2, 1))
    topk_np.kernels.numpy.scatter_matmul(*given, whole[first:last], first)
    expected[first:last] = np.array([[0], [1], [2], [1], [0]])[first:last]
    np.testing.assert_array_equal(whole, expected)


@given(sparse=sparse_CK_of_N(), seed=seeds)
def test_a_matrix_by_column_is_the_one_of_scipy(
    sparse: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    indices, counts, columns = sparse
    weights, _, _ = sparse_problem(seed, *sparse)
    ends, places, data = rows = csr(weights, indices, counts)
    expected = csr_array((data, places, ends), (len(indices), columns)).tocsc()
    found = by_column(*rows, columns)
    wanted = expected.indptr, expected.indices, expected.data
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
