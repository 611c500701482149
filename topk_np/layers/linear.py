"""The linear layer, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from topk_np._namespace import Array, array_namespace, cast, check_floats, check_same, plain
from topk_np.layers.affine import affine, affine_bwd
from topk_np.layers.rows import check_residuals, check_vector
from topk_np.options.check import check_dout


class LinearGrads(NamedTuple):
    """Gradients of the linear layer, each with the shape and dtype of its input."""

    x: Array
    weight: Array
    bias: Array | None
    """None if the layer had none."""


@dataclass(frozen=True, eq=False)
class LinearResiduals:
    """What `linear_bwd` needs: the inputs."""

    x: Array = field(repr=False)
    weight: Array = field(repr=False)
    bias: Array | None = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return 0


def linear(x: Array, weight: Array, bias: Array | None = None, /) -> Array:
    """
    The linear layer ``x weightᵀ + bias``.

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
    linear_fwd : also returns what the backward pass needs.

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
    return linear_fwd(x, weight, bias)[0]


def linear_fwd(
    x: Array, weight: Array, bias: Array | None = None, /
) -> tuple[Array, LinearResiduals]:
    """
    `linear`, and what its backward pass needs.

    Parameters, errors and cost are those of `linear`.

    Returns
    -------
    out : array (..., F)
        What `linear` returns.
    residuals : LinearResiduals
        The inputs by reference and nothing else.

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


def linear_bwd(residuals: LinearResiduals, dout: Array, /) -> LinearGrads:
    """
    Gradients of `linear`.

    A row of x without any gradient adds nothing to the weight's, even if it is NaN.

    Parameters
    ----------
    residuals : LinearResiduals
        From `linear_fwd`.
    dout : array (..., F)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    LinearGrads
        Gradients of x, weight and bias, None for a bias that was not given.

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
