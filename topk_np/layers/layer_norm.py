"""Layer normalisation, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from topk_np._namespace import (
    Array,
    array_namespace,
    cast,
    check_floats,
    check_number,
    compute_dtype,
    nbytes,
    plain,
)
from topk_np.layers.rows import as_rows, check_eps, check_residuals, check_vector, last_mean
from topk_np.options.check import check_dout


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
