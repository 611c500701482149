"""The linear layer ``x weightᵀ + bias``; half precision is computed in float32."""

from __future__ import annotations

import math

from topk_np._namespace import Array, array_namespace, cast, compute_dtype


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Rows ``x`` (..., E) by ``weight`` (F, E), plus ``bias`` (F,): (..., F) in the dtype of x."""
    xp = array_namespace(x)
    dtype = compute_dtype(xp, x)
    out = cast(xp, x, dtype) @ xp.matrix_transpose(cast(xp, weight, dtype))
    if bias is not None:
        out = out + cast(xp, bias, dtype)
    return cast(xp, out, x.dtype)


def linear_bwd(
    x: Array, weight: Array, bias: Array | None, dout: Array
) -> tuple[Array, Array, Array | None]:
    """
    Gradients of `linear`: of weight and bias in their dtype, of x in that of computation.

    A row of x without any gradient adds nothing to the weight's, even if it is NaN.
    """
    xp = array_namespace(x)
    dtype = compute_dtype(xp, x)
    dout = cast(xp, dout, dtype)
    count = math.prod(x.shape[:-1])
    drows = xp.reshape(dout, (count, dout.shape[-1]))
    rows = xp.reshape(cast(xp, x, dtype), (count, x.shape[-1]))
    rows = xp.where(xp.any(drows != 0, axis=-1, keepdims=True), rows, xp.zeros_like(rows[:1, :1]))
    dweight = cast(xp, xp.matrix_transpose(drows) @ rows, x.dtype)
    dbias = None if bias is None else cast(xp, xp.sum(drows, axis=0), x.dtype)
    return dout @ cast(xp, weight, dtype), dweight, dbias
