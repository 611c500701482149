"""Normalisation by the root mean square, forward and backward."""

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
