"""Every engine's products are what plain Python loops give, over the used slots alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.kernels.engines import Engine
from tests.kernels.stacks import (
    Sparse,
    as_laid_out,
    lay_out,
    layouts,
    precisions,
    sparse_GCN,
    surrounded,
)
from tests.oracles import assert_close
from tests.strategies import seeds

ONE_SLOT = Sparse(np.array([[[1.0], [2.0], [np.nan]]]), np.array([[[1], [0], [-1]]], np.int32), 2)
widths = st.integers(0, 4)
SIZE = 30  # of the sums that are compared


@given(sparse=sparse_GCN(), layout=layouts, dtype=st.sampled_from(["float64", "float32", "int32"]))
@example(sparse=ONE_SLOT, layout="plain", dtype="float64")
def test_take_slots_reads_the_used_slots_and_is_zero_in_the_others(
    engine: Engine, sparse: Sparse, layout: str, dtype: str
) -> None:
    shape = (*sparse.indices.shape[:2], sparse.keys)
    matrix = np.arange(1, 1 + math.prod(shape)).reshape(shape).astype(dtype)
    if dtype != "int32":
        matrix[..., -1:] = np.nan  # where -1 points to
    matrix = as_laid_out(matrix, layout)
    expected = np.zeros(sparse.indices.shape, dtype)
    for g, i, j, key in sparse.slots():
        expected[g, i, j] = matrix[g, i, key]
    taken = engine.call("take_slots", lay_out(engine, matrix, layout), sparse.indices)
    assert taken.dtype == expected.dtype
    np.testing.assert_array_equal(taken, expected)


@given(sparse=sparse_GCN(), width=widths, layout=layouts, dtype=precisions, seed=seeds)
@example(sparse=ONE_SLOT, width=2, layout="plain", dtype="float64", seed=0)
def test_gather_matmul_sums_the_used_slots_alone(
    engine: Engine, sparse: Sparse, width: int, layout: str, dtype: str, seed: int
) -> None:
    values = sparse.values(np.random.default_rng(seed), width, layout)
    expected = np.zeros((*sparse.indices.shape[:2], width))
    for g, i, j, key in sparse.slots():
        expected[g, i] += sparse.weights[g, i, j] * values[g, key]
    laid_out = lay_out(engine, values.astype(dtype), layout)
    pattern = engine.pattern(sparse.indices, sparse.keys)
    result = engine.call("gather_matmul", sparse.weights.astype(dtype), pattern, laid_out)
    assert_close(result, expected.astype(dtype), size=SIZE)


@given(
    sparse=sparse_GCN(),
    width=widths,
    layout=layouts,
    rows_layout=layouts,
    dtype=precisions,
    seed=seeds,
)
@example(sparse=ONE_SLOT, width=2, layout="plain", rows_layout="plain", dtype="float64", seed=0)
def test_sampled_matmul_is_the_dot_products_and_zero_in_unused_slots(
    engine: Engine,
    sparse: Sparse,
    width: int,
    layout: str,
    rows_layout: str,
    dtype: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    values, rows = sparse.values(rng, width, layout), sparse.rows(rng, width, rows_layout)
    expected = np.zeros(sparse.indices.shape)
    for g, i, j, key in sparse.slots():
        expected[g, i, j] = math.fsum(rows[g, i] * values[g, key])
    laid_out = (
        lay_out(engine, rows.astype(dtype), rows_layout),
        lay_out(engine, values.astype(dtype), layout),
    )
    pattern = engine.pattern(sparse.indices, sparse.keys)
    result = engine.call("sampled_matmul", *laid_out, pattern)
    assert_close(result, expected.astype(dtype), size=SIZE)


def scattered(sparse: Sparse, rows: np.ndarray) -> np.ndarray:
    """(G, N, V): the transposed matrices times rows (G, C, V)."""
    product = np.zeros((len(sparse.indices), sparse.keys, rows.shape[2]))
    for g, i, j, key in sparse.slots():
        product[g, key] += sparse.weights[g, i, j] * rows[g, i]
    return product


@given(
    sparse=sparse_GCN(),
    width=widths,
    layout=layouts,
    dtype=precisions,
    fresh=st.booleans(),
    seed=seeds,
    data=st.data(),
)
def test_scatter_matmul_adds_to_a_range_of_rows_or_replaces_them_unread(
    engine: Engine,
    sparse: Sparse,
    width: int,
    layout: str,
    dtype: str,
    fresh: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    first = data.draw(st.integers(0, sparse.keys))
    last = data.draw(st.integers(first, sparse.keys))
    rng = np.random.default_rng(seed)
    rows = sparse.rows(rng, width, layout)
    before = rng.standard_normal((len(rows), last - first, width)).astype(dtype)
    added = scattered(sparse, rows)[:, first:last]
    expected = (added if fresh else before + added).astype(dtype)
    if fresh:
        before[:] = np.nan

    # The one array a primitive may write to: a part of another, which is left as it is.
    whole = engine.own(surrounded(before))
    out = whole[1:-1, 1:-1, 1:-1]
    pattern = engine.pattern(sparse.indices, sparse.keys)
    laid_out = lay_out(engine, rows.astype(dtype), layout)
    options = {"first": first, "fresh": fresh} if first or fresh else {}
    weights = engine.given(sparse.weights.astype(dtype))
    with np.errstate(all="ignore"):
        result = engine.module.scatter_matmul(weights, pattern, laid_out, out, **options)
    assert_close(engine.answer(result), expected, size=SIZE)
    left, inside = engine.answer(whole), engine.answer(out)
    np.testing.assert_array_equal(left, surrounded(inside))
    if result is out:
        np.testing.assert_array_equal(inside, engine.answer(result))
    else:
        np.testing.assert_array_equal(inside, before)


@given(sparse=sparse_GCN(), dtype=precisions, seed=seeds)
@example(sparse=ONE_SLOT, dtype="float64", seed=0)
def test_add_slots_adds_the_used_slots_where_they_belong(
    engine: Engine, sparse: Sparse, dtype: str, seed: int
) -> None:
    start = np.random.default_rng(seed).standard_normal(sparse.dense.shape)
    expected = (start + sparse.dense).astype(dtype)
    for transposed in (False, True):
        out = engine.own(surrounded(start.mT if transposed else start).astype(dtype))
        out = out[1:-1, 1:-1, 1:-1]
        out = out.mT if transposed else out
        pattern = engine.pattern(sparse.indices, sparse.keys)
        weights = engine.given(sparse.weights.astype(dtype))
        with np.errstate(all="ignore"):
            result = engine.module.add_slots(weights, pattern, out)
        assert_close(engine.answer(result), expected)


@given(sparse=sparse_GCN(), width=widths, seed=seeds)
def test_products_equal_those_of_the_dense_matrix_and_share_its_pattern(
    engine: Engine, sparse: Sparse, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((*sparse.indices.shape[:2], width))
    values = rng.standard_normal((len(rows), sparse.keys, width))
    pattern = engine.pattern(sparse.indices, sparse.keys)

    gathered = engine.call("gather_matmul", sparse.weights, pattern, values)
    assert_close(gathered, sparse.dense @ values, size=SIZE)
    sampled = engine.call("sampled_matmul", rows, values, pattern)
    places = np.where(sparse.used, sparse.indices, 0)
    products = np.take_along_axis(rows @ values.mT, places, 2) if sparse.keys else 0.0
    assert_close(sampled, np.where(sparse.used, products, 0.0), size=SIZE)
    for _ in range(2):  # several gradients have the pattern in common
        scattering = sparse.weights, pattern, rows, engine.own(values)
        added = engine.module.scatter_matmul(*map(engine.given, scattering[:3]), scattering[3])
        assert_close(engine.answer(added), values + sparse.dense.mT @ rows, size=SIZE)


@given(sparse=sparse_GCN(), width=widths, seed=seeds)
def test_sampled_product_is_the_derivative_of_the_gathered_one(
    engine: Engine, sparse: Sparse, width: int, seed: int
) -> None:
    """<dout, S(w) V> = <w, sampled(dout, V)> = <V, S(w)^T dout>: the three adjoints agree."""
    rng = np.random.default_rng(seed)
    weights = np.where(sparse.used, sparse.weights, 0)
    dout = rng.standard_normal((*weights.shape[:2], width))
    values = rng.standard_normal((len(weights), sparse.keys, width))
    pattern = engine.pattern(sparse.indices, sparse.keys)

    product = np.sum(dout * engine.call("gather_matmul", weights, pattern, values))
    dweights = engine.call("sampled_matmul", dout, values, pattern)
    room = engine.own(np.full_like(values, np.nan))
    given = map(engine.given, (weights, pattern, dout))
    dvalues = engine.answer(engine.module.scatter_matmul(*given, room, fresh=True))
    np.testing.assert_allclose(np.sum(weights * dweights), product, atol=1e-12)
    np.testing.assert_allclose(np.sum(values * dvalues), product, atol=1e-12)


@given(sparse=sparse_GCN(), width=widths, layout=layouts, seed=seeds)
def test_values_of_half_precision_are_multiplied_as_what_they_are(
    engine: Engine, sparse: Sparse, width: int, layout: str, seed: int
) -> None:
    if "float16" not in engine.backend.dtypes:
        return
    rng = np.random.default_rng(seed)
    half = sparse.values(rng, width, layout).astype("float16")
    weights, rows = (a.astype("float32") for a in (sparse.weights, sparse.rows(rng, width)))
    pattern = engine.pattern(sparse.indices, sparse.keys)
    for name, before, after in (
        ("gather_matmul", (weights, pattern), ()),
        ("sampled_matmul", (rows,), (pattern,)),
    ):
        got, expected = (
            engine.call(name, *before, lay_out(engine, values, layout), *after)
            for values in (half, half.astype("float32"))
        )
        assert_close(got, expected, size=SIZE)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layout", ["plain", "transposed"])
def test_what_is_not_finite_reaches_the_rows_that_use_it_and_no_others(
    engine: Engine, poison: float, layout: str
) -> None:
    indices = np.asarray([[[0, 1], [1, 2], [2, -1], [-1, -1]]] * 2, np.int32)
    weights = np.asarray([[[1.0, 2.0], [3.0, 4.0], [5.0, 0.0], [0.0, 0.0]]] * 2)
    values = np.stack([[[1.0, 1.0], [1.0, 1.0], [poison, 1.0]], np.ones((3, 2))])
    rows = np.stack([[[1.0, 1.0], [1.0, poison], [1.0, 1.0], [poison, 1.0]], np.ones((4, 2))])
    pattern = engine.pattern(indices, 3)

    gathered = engine.call("gather_matmul", weights, pattern, lay_out(engine, values, layout))
    poisoned = [[3, 3], [3 + 4 * poison, 7], [5 * poison, 5], [0, 0]]
    assert_close(gathered, np.asarray([poisoned, [[3, 3], [7, 7], [5, 5], [0, 0]]], float))
    laid_out = lay_out(engine, rows, layout)
    sampled = engine.call("sampled_matmul", laid_out, np.ones((2, 3, 2)), pattern)
    usual = [[2, 2], [2, 2], [2, 0], [0, 0]]
    assert_close(sampled, np.asarray([[[2, 2], [poison, poison], [2, 0], [0, 0]], usual], float))
    laid_out = lay_out(engine, values, layout)
    sampled = engine.call("sampled_matmul", np.ones((2, 4, 2)), laid_out, pattern)
    assert_close(sampled, np.asarray([[[2, 2], [2, poison], [poison, 0], [0, 0]], usual], float))
    given = engine.given(weights), pattern, lay_out(engine, rows, layout)
    with np.errstate(all="ignore"):
        result = engine.module.scatter_matmul(*given, engine.own(np.zeros((2, 3, 2))))
    poisoned = [[1, 1], [5, 2 + 3 * poison], [9, 5 + 4 * poison]]
    expected = np.asarray([poisoned, [[1, 1], [5, 5], [9, 9]]], float)
    assert_close(engine.answer(result), expected)


def test_a_used_slot_of_weight_zero_is_multiplied(engine: Engine) -> None:
    pattern = engine.pattern(np.zeros((1, 1, 1), np.int32), 1)
    zero, values = np.zeros((1, 1, 1)), np.asarray([[[math.nan]]])
    assert np.isnan(engine.call("gather_matmul", zero, pattern, values)).all()


@given(
    shape=st.tuples(st.integers(1, 3), *(st.integers(0, most) for most in (4, 5, 3))),
    layout=layouts,
    values_layout=layouts,
    poison=st.sampled_from([0.0, math.nan, math.inf, -math.inf]),
    dtype=precisions,
    seed=seeds,
)
def test_masked_matmul_is_the_product_over_pairs_with_a_score(
    engine: Engine,
    shape: tuple[int, int, int, int],
    layout: str,
    values_layout: str,
    poison: float,
    dtype: str,
    seed: int,
) -> None:
    (heads, rows, columns, width), rng = shape, np.random.default_rng(seed)
    scores = rng.choice([-np.inf, 1.0, np.nan], (heads, rows, columns), p=[0.5, 0.4, 0.1])
    scores[:, :1] = 1.0
    scores[:, 1:2] = -np.inf
    weights = np.where(scores == -np.inf, 0.0, rng.standard_normal(scores.shape))
    values = rng.standard_normal((heads, columns, width))
    values[:, 2:3, 1:] = poison
    scores, weights = (as_laid_out(a.astype(dtype), layout) for a in (scores, weights))
    values = as_laid_out(values.astype(dtype), values_layout)
    expected = np.zeros((heads, rows, width))
    with np.errstate(invalid="ignore"):
        for g, i, j in zip(*np.nonzero(scores != -np.inf), strict=True):
            expected[g, i] += weights[g, i, j] * values[g, j]
    laid_out = [lay_out(engine, a, layout) for a in (weights, scores)]
    result = engine.call("masked_matmul", *laid_out, lay_out(engine, values, values_layout))
    assert_close(result, expected.astype(dtype), size=10)
