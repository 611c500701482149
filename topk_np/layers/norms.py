"""Layer normalisation and normalisation by the root mean square, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from topk_np._namespace import (
    Array,
    Namespace,
    array_namespace,
    cast,
    check_floats,
    check_number,
    compute_dtype,
    nbytes,
    plain,
)
from topk_np.inputs import check_dout
from topk_np.layers.linear import as_rows, check_residuals, check_vector


class LayerNormGrads(NamedTuple):
    """Gradients of layer normalisation, each with the shape and dtype of its input."""

    x: Array
    weight: Array
    bias: Array | None
    """None if the layer had none."""


@dataclass(frozen=True, eq=False)
class LayerNormResiduals:
    """What `layer_norm_bwd` needs: the inputs, and two numbers a row."""

    x: Array = field(repr=False)
    weight: Array = field(repr=False)
    bias: Array | None = field(repr=False)
    mean: Array
    """(T, 1) of each row, as the next."""
    factor: Array
    """What the centred row was multiplied by: 1 / its standard deviation."""

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return nbytes(self.mean) + nbytes(self.factor)


def layer_norm(
    x: Array, weight: Array, bias: Array | None = None, /, *, eps: float = 1e-5
) -> Array:
    """
    Rows with mean 0 and variance 1, then scaled and shifted feature by feature.

    Parameters
    ----------
    x : array (..., D)
        float16, bfloat16, float32 or float64; half precision is computed in float32.
    weight : array (D,)
        The scale of each feature.
    bias : array (D,), optional
        The shift of each feature.
    eps : float, default 1e-5
        Added to the variance; not negative. BERT has 1e-12.

    Returns
    -------
    array (..., D)
        ``(x - mean) / sqrt(variance + eps) * weight + bias``, in the dtype, library and device of
        the inputs.

    Raises
    ------
    TypeError
        If the inputs are not floating arrays of one library, device and dtype, or `eps` is not a
        number.
    ValueError
        If shapes do not fit, or `eps` is negative.

    See Also
    --------
    layer_norm_fwd : also returns what the backward pass needs.

    Notes
    -----
    The variance is that of the population, over D. Time is O(T D) for T rows. Ba, Kiros and Hinton,
    *Layer Normalization*, 2016, section 3, arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import layer_norm
    >>> layer_norm(np.array([1.0, 3.0]), np.ones(2), np.array([0.0, 5.0]), eps=0.0)
    array([-1.,  6.])
    """
    return layer_norm_fwd(x, weight, bias, eps=eps)[0]


def layer_norm_fwd(
    x: Array, weight: Array, bias: Array | None = None, /, *, eps: float = 1e-5
) -> tuple[Array, LayerNormResiduals]:
    """
    `layer_norm`, and what its backward pass needs.

    Parameters, errors and cost are those of `layer_norm`.

    Returns
    -------
    out : array (..., D)
        What `layer_norm` returns.
    residuals : LayerNormResiduals
        The inputs by reference, and for each row its mean and a factor.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import layer_norm_fwd
    >>> out, residuals = layer_norm_fwd(np.ones((5, 8)), np.ones(8))
    >>> residuals.nbytes
    80
    """
    xp = check_floats({"x": x, "weight": weight}, {"bias": bias})
    check_vector("weight", weight, "a row of x", x.shape[-1] if x.ndim else 0)
    check_vector("bias", bias, "a row of x", weight.shape[0])
    eps = check_eps(check_number("eps", eps))
    x, weight, bias = plain(x), plain(weight), None if bias is None else plain(bias)
    dtype = compute_dtype(xp, x)
    # 1 centred = x - mean
    # 2 factor = 1 / sqrt(variance + eps)
    # 3 out = centred * factor * weight + bias
    rows = as_rows(cast(xp, x, dtype))
    mean = last_mean(xp, rows)
    out = rows - mean
    factor = 1 / xp.sqrt(last_mean(xp, out, out) + eps)
    out *= factor
    out *= cast(xp, weight, dtype)
    if bias is not None:
        out += cast(xp, bias, dtype)
    residuals = LayerNormResiduals(x, weight, bias, mean, factor)
    return xp.reshape(cast(xp, out, x.dtype), x.shape), residuals


def layer_norm_bwd(residuals: LayerNormResiduals, dout: Array, /) -> LayerNormGrads:
    """
    Gradients of `layer_norm`.

    Parameters
    ----------
    residuals : LayerNormResiduals
        From `layer_norm_fwd`.
    dout : array (..., D)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    LayerNormGrads
        Gradients of x, weight and bias, None for a bias that was not given.

    Raises
    ------
    TypeError
        If `residuals` is not from `layer_norm_fwd`, or `dout` has another library, device or dtype
        than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Notes
    -----
    With ``normed = centred * factor`` and ``d = dout * weight``, the gradient of x is
    ``factor * (d - mean(d) - normed * mean(d * normed))``, since a row has to keep its mean and
    its length. Time is O(T D) for T rows.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import layer_norm_bwd, layer_norm_fwd
    >>> out, residuals = layer_norm_fwd(np.array([[1.0, 3.0]]), np.ones(2), np.ones(2), eps=0.0)
    >>> layer_norm_bwd(residuals, np.array([[5.0, 7.0]])).weight
    array([-5.,  7.])
    """
    check_residuals(residuals, LayerNormResiduals, "layer_norm_fwd")
    x, factor = residuals.x, residuals.factor
    dout = check_dout(x, tuple(x.shape), dout)
    xp = array_namespace(x)
    dtype = compute_dtype(xp, x)
    weight, drows = cast(xp, residuals.weight, dtype), as_rows(cast(xp, dout, dtype))
    normed = as_rows(cast(xp, x, dtype)) - residuals.mean
    normed *= factor
    # 3
    dbias = None if residuals.bias is None else cast(xp, xp.sum(drows, axis=0), x.dtype)
    products = drows * normed
    dweight = cast(xp, xp.sum(products, axis=0), x.dtype)
    # 2, 1
    dx = drows * weight
    normed *= last_mean(xp, products, weight)
    dx -= normed
    dx -= last_mean(xp, drows, weight)
    dx *= factor
    return LayerNormGrads(xp.reshape(cast(xp, dx, x.dtype), x.shape), dweight, dbias)


class RMSNormGrads(NamedTuple):
    """Gradients of `rms_norm`, each with the shape and dtype of its input."""

    x: Array
    weight: Array


@dataclass(frozen=True, eq=False)
class RMSNormResiduals:
    """What `rms_norm_bwd` needs: the inputs, and a number a row."""

    x: Array = field(repr=False)
    weight: Array = field(repr=False)
    factor: Array
    """(T, 1) what each row was multiplied by: 1 / its root mean square."""

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return nbytes(self.factor)


def rms_norm(x: Array, weight: Array, /, *, eps: float = 1e-6) -> Array:
    """
    Rows with mean square 1, then scaled feature by feature.

    Parameters
    ----------
    x : array (..., D)
        float16, bfloat16, float32 or float64; half precision is computed in float32.
    weight : array (D,)
        The scale of each feature.
    eps : float, default 1e-6
        Added to the mean square; not negative.

    Returns
    -------
    array (..., D)
        ``x / sqrt(mean(x^2) + eps) * weight``, in the dtype, library and device of the inputs.

    Raises
    ------
    TypeError
        If the inputs are not floating arrays of one library, device and dtype, or `eps` is not a
        number.
    ValueError
        If shapes do not fit, or `eps` is negative.

    See Also
    --------
    rms_norm_fwd : also returns what the backward pass needs.

    Notes
    -----
    Time is O(T D) for T rows. Zhang and Sennrich, *Root Mean Square Layer Normalization*, 2019,
    section 4, arXiv:1910.07467; T5 and Llama have it.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import rms_norm
    >>> rms_norm(np.array([1.0, 7.0]), np.array([5.0, 1.0]), eps=0.0)
    array([1. , 1.4])
    """
    return rms_norm_fwd(x, weight, eps=eps)[0]


def rms_norm_fwd(
    x: Array, weight: Array, /, *, eps: float = 1e-6
) -> tuple[Array, RMSNormResiduals]:
    """
    `rms_norm`, and what its backward pass needs.

    Parameters, errors and cost are those of `rms_norm`.

    Returns
    -------
    out : array (..., D)
        What `rms_norm` returns.
    residuals : RMSNormResiduals
        The inputs by reference, and a factor for each row.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import rms_norm_fwd
    >>> out, residuals = rms_norm_fwd(np.ones((5, 8)), np.ones(8))
    >>> residuals.nbytes
    40
    """
    xp = check_floats({"x": x, "weight": weight})
    check_vector("weight", weight, "a row of x", x.shape[-1] if x.ndim else 0)
    eps = check_eps(check_number("eps", eps))
    x, weight = plain(x), plain(weight)
    dtype = compute_dtype(xp, x)
    # 1 factor = 1 / sqrt(mean square + eps)
    # 2 out = x * factor * weight
    rows = as_rows(cast(xp, x, dtype))
    factor = 1 / xp.sqrt(last_mean(xp, rows, rows) + eps)
    out = rows * factor
    out *= cast(xp, weight, dtype)
    return xp.reshape(cast(xp, out, x.dtype), x.shape), RMSNormResiduals(x, weight, factor)


def rms_norm_bwd(residuals: RMSNormResiduals, dout: Array, /) -> RMSNormGrads:
    """
    Gradients of `rms_norm`.

    Parameters
    ----------
    residuals : RMSNormResiduals
        From `rms_norm_fwd`.
    dout : array (..., D)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    RMSNormGrads
        Gradients of x and weight.

    Raises
    ------
    TypeError
        If `residuals` is not from `rms_norm_fwd`, or `dout` has another library, device or dtype
        than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Notes
    -----
    With ``normed = x * factor`` and ``d = dout * weight``, the gradient of x is
    ``factor * (d - normed * mean(d * normed))``, since a row has to keep its length. Time is O(T D)
    for T rows.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import rms_norm_bwd, rms_norm_fwd
    >>> out, residuals = rms_norm_fwd(np.array([[3.0, 3.0]]), np.ones(2), eps=0.0)
    >>> rms_norm_bwd(residuals, np.array([[5.0, 7.0]])).weight
    array([5., 7.])
    """
    check_residuals(residuals, RMSNormResiduals, "rms_norm_fwd")
    x, factor = residuals.x, residuals.factor
    dout = check_dout(x, tuple(x.shape), dout)
    xp = array_namespace(x)
    dtype = compute_dtype(xp, x)
    weight, drows = cast(xp, residuals.weight, dtype), as_rows(cast(xp, dout, dtype))
    normed = as_rows(cast(xp, x, dtype)) * factor
    # 2
    products = drows * normed
    dweight = cast(xp, xp.sum(products, axis=0), x.dtype)
    # 1
    dx = drows * weight
    normed *= last_mean(xp, products, weight)
    dx -= normed
    dx *= factor
    return RMSNormGrads(xp.reshape(cast(xp, dx, x.dtype), x.shape), dweight)


NORMS = ("layer", "rms")


def init_norm(norm: str, width: int) -> dict[str, np.ndarray]:
    """A weight of ones, and a layer norm's bias of zeros, in float32."""
    weight = {"weight": np.ones(width, np.float32)}
    return weight if norm == "rms" else weight | {"bias": np.zeros(width, np.float32)}


def norm_fwd(norm: str, x: Array, params: Mapping[str, Array]) -> tuple[Array, Any]:
    """The norm of rows (..., D), and what `norm_bwd` needs."""
    if norm == "rms":
        return rms_norm_fwd(x, params["weight"])
    return layer_norm_fwd(x, params["weight"], params["bias"])


def norm_bwd(residuals: Any, dout: Array) -> tuple[Array, dict[str, Array]]:
    """Gradients of `norm_fwd`: of x, and of the parameters by their names."""
    rms = isinstance(residuals, RMSNormResiduals)
    backward: Any = rms_norm_bwd if rms else layer_norm_bwd
    grads: RMSNormGrads | LayerNormGrads = backward(residuals, dout)
    named = grads._asdict()
    return named.pop("x"), named


def last_mean(xp: Namespace, rows: Array, factors: Array | None = None) -> Array:
    """(T, 1): the mean of each row (T, D), of its products with `factors` if these are given."""
    width = max(1, rows.shape[1])
    if factors is None:
        factors = xp.ones((rows.shape[1],), dtype=rows.dtype, device=device(rows))
    # Products with a vector, or row by row, are faster than sums along the last axis.
    total = rows @ factors if factors.ndim == 1 else xp.vecdot(rows, factors)
    return total[:, None] / width


def check_eps(eps: float) -> float:
    """Return `eps` if it is not negative."""
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    return eps
