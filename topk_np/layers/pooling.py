"""Pooling of a sequence to one row, its mean or its first, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from array_api_compat import device

from topk_np._namespace import (
    Array,
    array_namespace,
    cast,
    check_broadcasts,
    check_choice,
    check_device,
    check_floats,
    check_ndim,
    compute_dtype,
    cumulative_sum,
    dtype_name,
    namespace_of,
    nbytes,
    plain,
)
from topk_np._vjp import output_of
from topk_np.layers.linear import check_residuals
from topk_np.options.check import check_dout


@dataclass(frozen=True, eq=False)
class PoolResiduals:
    """Residuals of `pool`: the weight of each position, and the shape and dtype of `x`."""

    shape: tuple[int, ...]
    dtype: Any
    weights: Array = field(repr=False)
    """(..., N, 1)"""

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return nbytes(self.weights)


def pool_fwd(
    x: Array, /, *, mask: Array | None = None, how: Literal["mean", "first"] = "mean"
) -> tuple[Array, PoolResiduals]:
    """
    Pooling that also returns the residuals for its backward pass.

    Parameters, errors and cost are those of `pool`.

    Returns
    -------
    out : array (..., D)
        The output of `pool`.
    residuals : PoolResiduals
        The weight of each position.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import pool_fwd
    >>> out, residuals = pool_fwd(np.ones((4, 2)))
    >>> residuals.weights[:, 0]
    array([0.25, 0.25, 0.25, 0.25])
    """
    xp = check_floats({"x": x})
    check_ndim("x", x, 2, "(..., N, D)")
    check_choice("how", how, ("mean", "first"))
    x, dtype, rows = plain(x), compute_dtype(xp, x), tuple(x.shape[:-1])
    if mask is None:
        mask = xp.ones(rows[-1:], dtype=xp.bool, device=device(x))
    else:
        namespace_of({"x": x, "mask": mask})
        check_device("mask", mask, "x", x)
        if dtype_name(mask) != "bool":
            raise TypeError(f"mask must be boolean, got an array of dtype {mask.dtype}")
        check_broadcasts("mask", tuple(mask.shape), rows, "(..., N)")
        mask = xp.broadcast_to(plain(mask), (*mask.shape[:-1], rows[-1]))
    before = cumulative_sum(xp, xp.astype(mask, xp.int64))
    if how == "first":
        mask = mask & (before == 1)
        before = xp.astype(mask, xp.int64)
    count = xp.max(before, axis=-1, keepdims=True) if rows[-1] else before
    weights = (xp.astype(mask, dtype) / cast(xp, xp.where(count == 0, 1, count), dtype))[..., None]
    kept = xp.where(mask[..., None], cast(xp, x, dtype), 0.0)
    out = xp.sum(kept * weights, axis=-2)
    return cast(xp, out, x.dtype), PoolResiduals(tuple(x.shape), x.dtype, weights)


@output_of(pool_fwd)
def pool() -> Array:
    """
    Pool a sequence to one row: the mean over the allowed positions, or the first of them.

    Parameters
    ----------
    x : array (..., N, D)
        float16, bfloat16, float32 or float64; half precision is computed in float32.
    mask : bool array (..., N), optional
        True where a position is allowed; broadcasts. By default all are. Any other position
        contributes nothing, even if it is NaN.
    how : {"mean", "first"}
        The mean, or the first allowed position.

    Returns
    -------
    array (..., D)
        In the dtype, library and device of `x`; 0 where no position is allowed.

    Raises
    ------
    TypeError
        If `x` is not a floating array, or `mask` not a boolean one of its library and device.
    ValueError
        If shapes do not fit, or `how` is unknown.

    See Also
    --------
    pool_fwd : also returns the residuals for the backward pass.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import pool
    >>> pool(np.array([[1.0], [3.0], [9.0]]), mask=np.array([True, True, False]))
    array([2.])
    """


def pool_bwd(residuals: PoolResiduals, dout: Array, /) -> Array:
    """
    Gradient of `pool`.

    Parameters
    ----------
    residuals : PoolResiduals
        From `pool_fwd`.
    dout : array (..., D)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    array (..., N, D)
        Gradient of the loss with respect to `x`.

    Raises
    ------
    TypeError
        If `residuals` is not from `pool_fwd`, or `dout` has another library, device or dtype than
        the output.
    ValueError
        If the shape of `dout` is not the output's.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import pool_bwd, pool_fwd
    >>> out, residuals = pool_fwd(np.ones((3, 1)), how="first")
    >>> pool_bwd(residuals, out)[:, 0]
    array([1., 0., 0.])
    """
    check_residuals(residuals, PoolResiduals, "pool_fwd")
    shape, weights = residuals.shape, residuals.weights
    xp = array_namespace(weights)
    like = xp.empty((), dtype=residuals.dtype, device=device(weights))
    dout = check_dout(like, (*shape[:-2], shape[-1]), dout)
    dx = cast(xp, dout, weights.dtype)[..., None, :] * weights
    return cast(xp, xp.broadcast_to(dx, shape), residuals.dtype)
