"""Row-sparse matrices in scipy's compressed forms, and the loops below its classes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels.numpy_found import used_slots


def csr(weights: Array, indices: Array, counts: Array) -> tuple[Array, Array, Array]:
    """A row-sparse matrix as compressed sparse rows: where they end, columns, and what is there."""
    rows, k = indices.shape
    if counts.size and counts.min() < k:
        used = used_slots(indices, counts)
        ends = np.zeros(rows + 1, np.int32)
        np.cumsum(counts, out=ends[1:])
        weights, indices = weights[used], indices[used]
    else:
        ends = np.arange(0, rows * k + 1, k, dtype=np.int32) if k else np.zeros(rows + 1, np.int32)
    return ends, indices.reshape(-1), weights.reshape(-1)


def by_column(ends: Array, columns: Array, data: Array, size: int) -> tuple[Array, Array, Array]:
    """The same matrix, of `size` columns, as compressed sparse columns, each in order of rows."""
    columnwise = np.empty(size + 1, np.int32), np.empty_like(columns), np.empty_like(data)
    sparsetools().csr_tocsc(ends.size - 1, size, ends, columns, data, *columnwise)
    return columnwise


@cache
def sparsetools() -> Any:
    """The loops below scipy's sparse matrices: they add in place, and check and copy nothing."""
    from scipy.sparse import _sparsetools  # takes a while to import

    return _sparsetools
