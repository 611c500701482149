"""A long attention matrix in cells: blocks of queries and keys, few enough for a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from topk_np.attention import TopKAttentionResiduals
from topk_np.diagnostics.matrix import attention_csr, check_head
from topk_np.schedule.plan import slices

ROWS = 1024  # of a matrix that are added up at once


def matrices_of(
    attention: Any, head: tuple[int, ...]
) -> tuple[Iterator[Any], tuple[int, int], int]:
    """
    The argument of `plot_attention`, as matrices of NumPy or SciPy.

    One for each head that the mean is taken over, made when its turn comes; the shape of each, and
    how many there are.
    """
    if isinstance(attention, TopKAttentionResiduals):
        call, batch = attention.call, attention.call.batch.lead
        check_head(head, batch)
        rest = batch[len(head) :]
        places = ((*head, *place) for place in np.ndindex(rest))
        matrices = (on_host(attention_csr(attention, head=place)) for place in places)
        return matrices, (call.queries, call.keys), int(np.prod(rest))
    if head != ():
        raise ValueError(f"head must be () unless residuals are given, got {head}")
    from scipy.sparse import issparse

    matrix: Any = on_host(attention)
    sparse = issparse(matrix)
    if not (sparse or isinstance(matrix, np.ndarray)):
        raise TypeError(
            "attention must be residuals of topk_attention_fwd, a sparse array or an array, "
            f"got {type(attention).__name__}"
        )
    if matrix.ndim != 2:
        raise ValueError(f"attention must have shape (Q, N), got {matrix.shape}")
    return iter([matrix.tocsr() if sparse else matrix]), matrix.shape, 1


def on_host(array: Any) -> Any:
    """An array or a sparse matrix of CuPy as NumPy's or SciPy's; others as they are."""
    return array.get() if hasattr(array, "get") else array


def cell_sums(matrix: Any, height: int, width: int) -> np.ndarray:
    """The sums of a matrix (Q, N) over cells of so many rows and columns."""
    from scipy.sparse import coo_array

    rows, columns = -(-matrix.shape[0] // height), -(-matrix.shape[1] // width)
    total = np.zeros(rows * columns)
    for some in slices(matrix.shape[0], ROWS):
        block = matrix[some]
        entries = coo_array(block.astype(float) if isinstance(block, np.ndarray) else block)
        row, column = entries.coords
        cell = (some.start + row) // height * columns + column // width
        total += np.bincount(cell, weights=entries.data, minlength=total.size)
    if np.any(total < 0):
        raise ValueError(f"attention must have weights of at least 0, got {total.min():.3g}")
    return total.reshape(rows, columns)
