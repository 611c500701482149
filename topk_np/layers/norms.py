"""Layer normalisation and normalisation by the root mean square, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

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
from topk_np._vjp import output_of
from topk_np.layers.linear import as_rows, check_residuals, check_vector
from topk_np.options.check import check_dout

NORMS = ("layer", "rms")


class LayerNormGrads(NamedTuple):
    """Gradients of layer normalisation, each with the shape and dtype of its input."""

    x: Array
    weight: Array
    bias: Array | None
    """None if the layer has no bias."""


class RMSNormGrads(NamedTuple):
    """Gradients of `rms_norm`, each with the shape and dtype of its input."""

    x: Array
    weight: Array


@dataclass(frozen=True, eq=False)
class NormResiduals:
    """Residuals of a norm: its inputs, and one or two numbers a row."""

    x: Array = field(repr=False)
    weight: Array = field(repr=False)
    bias: Array | None = field(repr=False)
    mean: Array | None
    """(T, 1) subtracted from each row; None in an RMS norm."""
    factor: Array
    """(T, 1) by which each row was then multiplied."""

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return nbytes(self.factor) + (0 if self.mean is None else nbytes(self.mean))


class LayerNormResiduals(NormResiduals):
    """Residuals of `layer_norm`: its inputs, and the mean and a factor of each row."""


class RMSNormResiduals(NormResiduals):
    """Residuals of `rms_norm`: its inputs, and a factor for each row."""


Residuals = TypeVar("Residuals", bound=NormResiduals)


def layer_norm_fwd(
    x: Array, weight: Array, bias: Array | None = None, /, *, eps: float = 1e-5
) -> tuple[Array, LayerNormResiduals]:
    """
    Layer normalisation that also returns the residuals for its backward pass.

    Parameters, errors and cost are those of `layer_norm`.

    Returns
    -------
    out : array (..., D)
        The output of `layer_norm`.
    residuals : LayerNormResiduals
        References to the inputs, and the mean and a factor of each row.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import layer_norm_fwd
    >>> out, residuals = layer_norm_fwd(np.ones((5, 8)), np.ones(8))
    >>> residuals.nbytes
    80
    """
    return _normalise(LayerNormResiduals, x, weight, bias, eps, centre=True)


@output_of(layer_norm_fwd)
def layer_norm() -> Array:
    """
    Normalise rows to mean 0 and variance 1, then scale and shift them feature by feature.

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
    layer_norm_fwd : also returns the residuals for the backward pass.

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
        Gradients of x, weight and bias; None for a bias that was not given.

    Raises
    ------
    TypeError
        If `residuals` is not from `layer_norm_fwd`, or `dout` has another library, device or dtype
        than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Notes
    -----
    With ``normed = (x - mean) * factor`` and ``d = dout * weight``, the gradient of x is
    ``factor * (d - mean(d) - normed * mean(d * normed))``, since the mean and the length of a row
    are fixed. Time is O(T D) for T rows.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import layer_norm_bwd, layer_norm_fwd
    >>> out, residuals = layer_norm_fwd(np.array([[1.0, 3.0]]), np.ones(2), np.ones(2), eps=0.0)
    >>> layer_norm_bwd(residuals, np.array([[5.0, 7.0]])).weight
    array([-5.,  7.])
    """
    check_residuals(residuals, LayerNormResiduals, "layer_norm_fwd")
    return LayerNormGrads(*_normalise_bwd(residuals, dout))


def rms_norm_fwd(
    x: Array, weight: Array, /, *, eps: float = 1e-6
) -> tuple[Array, RMSNormResiduals]:
    """
    Normalisation by the root mean square that also returns the residuals for its backward pass.

    Parameters, errors and cost are those of `rms_norm`.

    Returns
    -------
    out : array (..., D)
        The output of `rms_norm`.
    residuals : RMSNormResiduals
        References to the inputs, and a factor for each row.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import rms_norm_fwd
    >>> out, residuals = rms_norm_fwd(np.ones((5, 8)), np.ones(8))
    >>> residuals.nbytes
    40
    """
    return _normalise(RMSNormResiduals, x, weight, None, eps, centre=False)


@output_of(rms_norm_fwd)
def rms_norm() -> Array:
    """
    Normalise rows to mean square 1, then scale them feature by feature.

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
    rms_norm_fwd : also returns the residuals for the backward pass.

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
    ``factor * (d - normed * mean(d * normed))``, since the length of a row is fixed. Time is
    O(T D) for T rows.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import rms_norm_bwd, rms_norm_fwd
    >>> out, residuals = rms_norm_fwd(np.array([[3.0, 3.0]]), np.ones(2), eps=0.0)
    >>> rms_norm_bwd(residuals, np.array([[5.0, 7.0]])).weight
    array([5., 7.])
    """
    check_residuals(residuals, RMSNormResiduals, "rms_norm_fwd")
    return RMSNormGrads(*_normalise_bwd(residuals, dout)[:2])


def init_norm(norm: str, width: int) -> dict[str, np.ndarray]:
    """Make a weight of ones, and for a layer norm a bias of zeros, in float32."""
    weight = {"weight": np.ones(width, np.float32)}
    return weight if norm == "rms" else weight | {"bias": np.zeros(width, np.float32)}


def norm_fwd(
    norm: str, x: Array, params: Mapping[str, Array], *, eps: float | None = None
) -> tuple[Array, LayerNormResiduals | RMSNormResiduals]:
    """The norm of that name, with its own `eps` by default, and the residuals for `norm_bwd`."""
    options = {} if eps is None else {"eps": eps}
    if norm == "rms":
        return rms_norm_fwd(x, params["weight"], **options)
    return layer_norm_fwd(x, params["weight"], params["bias"], **options)


def norm_bwd(residuals: Any, dout: Array) -> tuple[Array, dict[str, Array]]:
    """Gradients of `norm_fwd`: of x, and of the parameters by name."""
    rms = isinstance(residuals, RMSNormResiduals)
    backward: Any = rms_norm_bwd if rms else layer_norm_bwd
    grads: RMSNormGrads | LayerNormGrads = backward(residuals, dout)
    named = grads._asdict()
    return named.pop("x"), named


def _normalise(
    kind: type[Residuals], x: Array, weight: Array, bias: Array | None, eps: float, *, centre: bool
) -> tuple[Array, Residuals]:
    """Either norm: rows are centred first or not."""
    xp = check_floats({"x": x, "weight": weight}, {"bias": bias})
    check_vector("weight", weight, "a row of x", x.shape[-1] if x.ndim else 0)
    check_vector("bias", bias, "a row of x", weight.shape[0])
    eps = check_number("eps", eps)
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    x, weight, bias = plain(x), plain(weight), None if bias is None else plain(bias)
    dtype = compute_dtype(xp, x)
    # 1 rows = x - mean
    # 2 factor = 1 / sqrt(mean square of rows + eps)
    # 3 out = rows * factor * weight + bias
    rows = as_rows(cast(xp, x, dtype))
    mean = last_mean(xp, rows) if centre else None
    rows = rows if mean is None else rows - mean
    factor = 1 / xp.sqrt(last_mean(xp, rows, rows) + eps)
    if mean is None:
        out = rows * factor
    else:  # in place, since it is no input
        out = rows
        out *= factor
    out *= cast(xp, weight, dtype)
    if bias is not None:
        out += cast(xp, bias, dtype)
    residuals = kind(x, weight, bias, mean, factor)
    return xp.reshape(cast(xp, out, x.dtype), x.shape), residuals


def _normalise_bwd(residuals: NormResiduals, dout: Array) -> tuple[Array, Array, Array | None]:
    """Gradients of `_normalise`: of x, weight and bias."""
    x, mean, factor = residuals.x, residuals.mean, residuals.factor
    dout = check_dout(x, tuple(x.shape), dout)
    xp = array_namespace(x)
    dtype = compute_dtype(xp, x)
    weight, drows = cast(xp, residuals.weight, dtype), as_rows(cast(xp, dout, dtype))
    rows = as_rows(cast(xp, x, dtype))
    normed = (rows if mean is None else rows - mean) * factor
    # 3
    dbias = None if residuals.bias is None else cast(xp, xp.sum(drows, axis=0), x.dtype)
    products = drows * normed
    dweight = cast(xp, xp.sum(products, axis=0), x.dtype)
    # 2
    dx = drows * weight
    normed *= last_mean(xp, products, weight)
    dx -= normed
    # 1
    if mean is not None:
        dx -= last_mean(xp, drows, weight)
    dx *= factor
    return xp.reshape(cast(xp, dx, x.dtype), x.shape), dweight, dbias


def last_mean(xp: Namespace, rows: Array, factors: Array | None = None) -> Array:
    """(T, 1): the mean of each row (T, D), or of its products with `factors` (D,) or (T, D)."""
    width = max(1, rows.shape[1])
    if factors is None:
        factors = xp.ones((rows.shape[1],), dtype=rows.dtype, device=device(rows))
    # Products with a vector, or row by row, are faster than sums along the last axis.
    total = rows @ factors if factors.ndim == 1 else xp.vecdot(rows, factors)
    return total[:, None] / width
