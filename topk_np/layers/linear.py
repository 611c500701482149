"""The linear layer, forward and backward, and the rows, checks and weights that layers share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import (
    Array,
    array_namespace,
    cast,
    check_device,
    check_floats,
    check_same,
    compute_dtype,
    dtype_name,
    is_cupy,
    namespace_of,
    plain,
)
from topk_np._vjp import output_of
from topk_np.options.check import check_dout


class LinearGrads(NamedTuple):
    """Gradients of the linear layer, each with the shape and dtype of its input."""

    x: Array
    weight: Array
    bias: Array | None
    """None if the layer has no bias."""


@dataclass(frozen=True, eq=False)
class LinearResiduals:
    """Residuals of the linear layer: its inputs."""

    x: Array = field(repr=False)
    weight: Array = field(repr=False)
    bias: Array | None = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return 0


def linear_fwd(
    x: Array, weight: Array, bias: Array | None = None, /
) -> tuple[Array, LinearResiduals]:
    """
    Linear layer that also returns the residuals for its backward pass.

    Parameters, errors and cost are those of `linear`.

    Returns
    -------
    out : array (..., F)
        The output of `linear`.
    residuals : LinearResiduals
        References to the inputs.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import linear_fwd
    >>> out, residuals = linear_fwd(np.ones(2), np.eye(2))
    >>> out, residuals.nbytes
    (array([1., 1.]), 0)
    """
    check_floats({"x": x, "weight": weight}, {"bias": bias})
    if x.ndim == 0 or weight.ndim != 2:
        raise ValueError(
            "x must have shape (..., E) and weight (F, E), "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    check_same("the last axis of weight", weight.shape[1], "that of x", x.shape[-1])
    check_vector("bias", bias, "the rows of weight", weight.shape[0])
    x, weight, bias = plain(x), plain(weight), None if bias is None else plain(bias)
    return affine(x, weight, bias), LinearResiduals(x, weight, bias)


@output_of(linear_fwd)
def linear() -> Array:
    """
    Linear layer ``x weightᵀ + bias``.

    Parameters
    ----------
    x : array (..., E)
        float16, bfloat16, float32 or float64; half precision is computed in float32.
    weight : array (F, E)
        A row for each output feature, as checkpoints store it.
    bias : array (F,), optional
        Added to each row.

    Returns
    -------
    array (..., F)
        In the dtype, library and device of the inputs.

    Raises
    ------
    TypeError
        If the inputs are not floating arrays of one library, device and dtype.
    ValueError
        If shapes do not fit.

    See Also
    --------
    linear_fwd : also returns the residuals for the backward pass.

    Notes
    -----
    Time is O(T E F) for T rows.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import linear
    >>> linear(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 3.0]]), np.ones(2))
    array([[4., 7.]])
    """


def linear_bwd(residuals: LinearResiduals, dout: Array, /) -> LinearGrads:
    """
    Gradients of `linear`.

    A row of x without any gradient adds nothing to the gradient of the weight, even if it is NaN.

    Parameters
    ----------
    residuals : LinearResiduals
        From `linear_fwd`.
    dout : array (..., F)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    LinearGrads
        Gradients of x, weight and bias; None for a bias that was not given.

    Raises
    ------
    TypeError
        If `residuals` is not from `linear_fwd`, or `dout` has another library, device or dtype
        than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import linear_bwd, linear_fwd
    >>> out, residuals = linear_fwd(np.ones((3, 2)), np.eye(2), np.zeros(2))
    >>> linear_bwd(residuals, out).bias
    array([3., 3.])
    """
    check_residuals(residuals, LinearResiduals, "linear_fwd")
    x, weight, bias = residuals.x, residuals.weight, residuals.bias
    dout = check_dout(x, (*x.shape[:-1], weight.shape[0]), dout)
    dx, dweight, dbias = affine_bwd(x, weight, bias, dout)
    return LinearGrads(cast(array_namespace(x), dx, x.dtype), dweight, dbias)


def affine(x: Array, weight: Array, bias: Array | None) -> Array:
    """``x weightᵀ + bias``, unchecked: `x` (..., E), `weight` (F, E), `bias` (F,) to (..., F)."""
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
    """Gradients of `affine`: weight and bias in their dtype, x in the dtype computed in."""
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


def glorot(rng: np.random.Generator, rows: int, columns: int, /) -> np.ndarray:
    """Draw a float32 matrix to start from, by equation 16 of Glorot and Bengio 2010."""
    bound = np.sqrt(6 / (rows + columns))
    return rng.uniform(-bound, bound, (rows, columns)).astype(np.float32)


def as_rows(x: Array) -> Array:
    """Reshape `x` (..., D) to a matrix (T, D), a row for each leading index."""
    if x.ndim == 2:
        return x
    return array_namespace(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def check_vector(name: str, array: Array | None, like: str, length: int) -> None:
    """Check that `array`, where it is given, has one axis of the length of `like`."""
    if array is not None and tuple(array.shape) != (length,):
        raise ValueError(
            f"{name} must have shape ({length},), that of {like}, got {tuple(array.shape)}"
        )


def check_integers(name: str, array: Array, like_name: str, like: Array) -> None:
    """Check that `array` holds integers, and has the library and device of `like`."""
    namespace_of({like_name: like, name: array})
    check_device(name, array, like_name, like)
    if "int" not in dtype_name(array):
        raise TypeError(f"{name} must be integers, got an array of dtype {array.dtype}")


def check_residuals(residuals: Any, kind: type, function: str) -> None:
    """Check that `residuals` come from `function`."""
    if not isinstance(residuals, kind):
        raise TypeError(f"residuals must come from {function}, got {type(residuals).__name__}")
