"""
Products with a matrix (C, N) that has at most K entries in a row.

The matrix is given as weights (C, K), their column indices (C, K) and how many slots of each row
are in use (C,): see `topk_np.kernels.Selection`.
"""

from __future__ import annotations

from topk_np._namespace import Array, array_namespace
from topk_np.kernels import engine


def gather_matmul(weights: Array, indices: Array, counts: Array, values: Array) -> Array:
    """The row-sparse matrix times `values` (N, V): (C, V)."""
    return engine(array_namespace(weights)).gather_matmul(weights, indices, counts, values)


def sampled_matmul(rows: Array, values: Array, indices: Array, counts: Array) -> Array:
    """The entries of ``rows @ values.T`` (C, V) x (V, N) in the used slots, 0 elsewhere: (C, K)."""
    return engine(array_namespace(rows)).sampled_matmul(rows, values, indices, counts)


def scatter_matmul(
    weights: Array, indices: Array, counts: Array, rows: Array, out: Array, first: int = 0
) -> Array:
    """
    `out` plus some rows of the transposed row-sparse matrix times `rows` (C, V).

    `out` (n, V) stands for the rows first..first + n of the product; on NumPy it is added to in
    place.
    """
    kernels = engine(array_namespace(weights))
    return kernels.scatter_matmul(weights, indices, counts, rows, out, first)


def add_slots(weights: Array, indices: Array, counts: Array, out: Array) -> Array:
    """`out` (C, N) plus the row-sparse matrix itself; on NumPy it is added to in place."""
    return engine(array_namespace(weights)).add_slots(weights, indices, counts, out)
