"""Rows times a matrix, plus a bias, and back, unchecked: what all projections share."""

from __future__ import annotations

import numpy as np

from topk_np._namespace import Array, array_namespace, cast, compute_dtype, is_cupy
from topk_np.layers.rows import as_rows


def affine(x: Array, weight: Array, bias: Array | None) -> Array:
    """``x weightᵀ + bias`` of `x` (..., E), `weight` (F, E), `bias` (F,): (..., F), dtype of x."""
    xp = array_namespace(x)
    dtype = compute_dtype(xp, x)
    # One product of matrices, not one for each leading index.
    out = as_rows(cast(xp, x, dtype)) @ xp.matrix_transpose(cast(xp, weight, dtype))
    if bias is not None:
        out += cast(xp, bias, dtype)
    return xp.reshape(cast(xp, out, x.dtype), (*x.shape[:-1], weight.shape[0]))


def affine_bwd(
    x: Array, weight: Array, bias: Array | None, dout: Array
) -> tuple[Array, Array, Array | None]:
    """
    Gradients of `affine`: of weight and bias in their dtype, of x in that of computation.

    A row of x without any gradient adds nothing to the weight's, even if it is NaN.
    """
    xp = array_namespace(x)
    dtype = compute_dtype(xp, x)
    rows, drows = as_rows(cast(xp, x, dtype)), as_rows(cast(xp, dout, dtype))
    with np.errstate(invalid="ignore"):
        dweight = xp.matrix_transpose(drows) @ rows
        # A GPU would have to be waited for.
        finite = not is_cupy(xp) and bool(xp.isfinite(xp.sum(dweight)))
    if not finite:
        used = xp.any(drows != 0, axis=-1, keepdims=True)
        dweight = xp.matrix_transpose(drows) @ xp.where(used, rows, xp.zeros_like(rows))
    dbias = None if bias is None else cast(xp, xp.sum(drows, axis=0), x.dtype)
    dx = xp.reshape(drows @ cast(xp, weight, dtype), x.shape)
    return dx, cast(xp, dweight, x.dtype), dbias
