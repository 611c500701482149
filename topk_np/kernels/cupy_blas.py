"""Products of stacks of matrices by cuBLAS, which reads them where they lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy
import numpy as np
from cupy.cuda import cublas

from topk_np._namespace import Array, dtype_name

PRODUCTS = {"float32": "sgemmStridedBatched", "float64": "dgemmStridedBatched"}
MOST = 65535  # products of one call


def multiply(left: Array, right: Array, out: Array, scale: float = 1.0) -> Array:
    """
    `out` (G, M, N), set to ``scale * left right`` (G, M, K) x (G, K, N) by cuBLAS.

    `cupy.matmul` of stacks would copy a transposed operand, and one that heads share.
    """
    (heads, rows, columns), inner = out.shape, left.shape[2]
    if inner == 0 or out.size == 0:
        out.fill(0)
        return out
    handle, size = cupy.cuda.get_cublas_handle(), out.itemsize
    product = getattr(cublas, PRODUCTS[dtype_name(out)])
    # cuBLAS, which counts by columns, is asked for the transposed product. What it is to multiply
    # by 0 it does not read, not even NaN.
    a, b = (_operand(matrices, out.dtype) for matrices in (right, left))
    factors = np.asarray([scale or 1, 0], out.dtype)
    for first in range(0, heads, MOST):
        product(
            handle,
            a.transposed,
            b.transposed,
            *(columns, rows, inner),
            factors.ctypes.data,
            *(a.memory.data.ptr + first * a.head * size, a.leading, a.head),
            *(b.memory.data.ptr + first * b.head * size, b.leading, b.head),
            factors.ctypes.data + size,
            *(out.data.ptr + first * rows * columns * size, columns, rows * columns),
            min(MOST, heads - first),
        )
    return out if scale else cupy.multiply(out, 0, out=out)


class _Operand(NamedTuple):
    """Matrices as cuBLAS reads them, by rows."""

    memory: Array
    transposed: bool
    leading: int
    """Elements from row to row, or if transposed from column to column."""
    head: int
    """Elements from matrix to matrix; 0 if they are the same."""


def _operand(matrices: Array, dtype: Any) -> _Operand:
    """Matrices (G, M, N) as they are, or a copy if both rows and columns have gaps."""
    matrices = matrices.astype(dtype, copy=False)
    (head, row, column), (_, height, width) = strides(matrices), matrices.shape
    if (column == 1 or width == 1) and (row >= width or height == 1):
        return _Operand(matrices, False, max(row, width), head)
    if (row == 1 or height == 1) and (column >= height or width == 1):
        return _Operand(matrices, True, max(column, height), head)
    own = cupy.ascontiguousarray(matrices if head else matrices[:1])
    return _Operand(own, False, width, height * width if head else 0)


def strides(array: Array) -> tuple[int, ...]:
    """The elements that lie between heads, rows and columns."""
    return tuple(stride // array.itemsize for stride in array.strides)
