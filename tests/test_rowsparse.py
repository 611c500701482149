"""The row-sparse products are those of the dense matrix they stand for, on every library."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from tests.backends import Backend
from tests.oracles import assert_close
from tests.strategies import seeds, sparse_CK_of_N
from topk_np.rowsparse import gather_matmul, sampled_matmul, scatter_matmul


def dense_form(
    weights: np.ndarray, indices: np.ndarray, counts: np.ndarray, columns: int
) -> np.ndarray:
    """The matrix (C, N) that weights, indices and counts stand for."""
    matrix = np.zeros((len(indices), columns), weights.dtype)
    for i, count in enumerate(counts):
        matrix[i, indices[i, :count]] = weights[i, :count]
    return matrix


@given(sparse=sparse_CK_of_N(), seed=seeds)
def test_products_equal_those_of_the_dense_matrix(
    xp: Backend, sparse: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    indices, counts, columns = sparse
    rng = np.random.default_rng(seed)
    used = indices >= 0
    weights = np.where(used, rng.standard_normal(indices.shape), 0)
    rows, values = rng.standard_normal((len(indices), 3)), rng.standard_normal((columns, 3))
    matrix = dense_form(weights, indices, counts, columns)
    w, i, c, r, v = xp.arrays(weights, indices, counts, rows, values)

    assert_close(xp.to_numpy(gather_matmul(w, i, c, v)), matrix @ values, size=30)
    sampled = xp.to_numpy(sampled_matmul(r, v, i, c))
    expected = np.take_along_axis(rows @ values.T, np.where(used, indices, 0), 1) if columns else 0
    assert_close(sampled, np.where(used, expected, 0.0), size=30)
    scattered = scatter_matmul(w, i, c, r, xp.xp.asarray(v, copy=True))
    assert_close(xp.to_numpy(scattered), values + matrix.T @ rows, size=30)


@given(sparse=sparse_CK_of_N(), seed=seeds)
def test_sampled_product_is_the_derivative_of_the_gathered_one(
    xp: Backend, sparse: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    """<dout, S(w) V> = <w, sampled(dout, V)> = <V, S(w)^T dout>: the three adjoints agree."""
    indices, counts, columns = sparse
    rng = np.random.default_rng(seed)
    weights = np.where(indices >= 0, rng.standard_normal(indices.shape), 0)
    dout, values = rng.standard_normal((len(indices), 2)), rng.standard_normal((columns, 2))
    w, i, c, d, v, zeros = xp.arrays(weights, indices, counts, dout, values, values * 0)

    out = xp.to_numpy(gather_matmul(w, i, c, v))
    dweights = xp.to_numpy(sampled_matmul(d, v, i, c))
    dvalues = xp.to_numpy(scatter_matmul(w, i, c, d, xp.xp.asarray(zeros, copy=True)))
    product = np.sum(dout * out)
    np.testing.assert_allclose(np.sum(weights * dweights), product, atol=1e-12)
    np.testing.assert_allclose(np.sum(values * dvalues), product, atol=1e-12)
