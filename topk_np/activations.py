"""
Activations, which turn scores into weights: the value and the derivative of each.

A score of -inf is masked, or stands for an unused slot: its weight and its derivative are 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from array_api_compat import device

from topk_np._namespace import Array, Namespace, array_namespace
from topk_np.kernels import Engine, engine


class Activation(NamedTuple):
    """An activation of the scores (G, C, n) of a chunk, row by row."""

    value: Callable[..., Array]
    """``value(scores, ops=None)``: the weights; `ops` is the engine, if it is known."""
    vjp: Callable[..., Array]
    """``vjp(scores, weights, dweights, ops=None)``: the gradient with respect to the scores."""
    by_element: bool
    """True if a weight depends on its own score alone, not on the whole row."""


def elementwise(
    value: Callable[[Namespace, Array], Array], slope: Callable[[Namespace, Array], Array]
) -> Activation:
    """
    An activation from a function of one score and its derivative.

    Parameters
    ----------
    value : callable
        ``value(xp, scores)``: the weight of each score, in functions of the library `xp`. A masked
        score never reaches it: its weight is 0.
    slope : callable
        ``slope(xp, scores)``: the derivative.

    Returns
    -------
    Activation
        For the argument `activation` of `topk_ffn` and `dense_ffn`.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_ffn
    >>> from topk_np.activations import elementwise
    >>> squared = elementwise(lambda xp, s: s * s, lambda xp, s: 2 * s)
    >>> topk_ffn(np.array([[3.0, 1.0]]), np.eye(2), np.eye(2), k=1, activation=squared)
    array([[9., 0.]])
    """
    value_of, vjp_of = partial(_masked_value, value), partial(_masked_vjp, slope)
    return Activation(value_of, vjp_of, by_element=True)


def _masked_value(value: Callable[..., Array], scores: Array, ops: Engine = None) -> Array:
    xp = array_namespace(scores)
    masked = scores == -xp.inf
    return xp.where(masked, 0.0, value(xp, xp.where(masked, 0.0, scores)))


def _masked_vjp(
    slope: Callable[..., Array], scores: Array, weights: Array, dweights: Array, ops: Engine = None
) -> Array:
    xp = array_namespace(scores)
    masked = scores == -xp.inf
    return xp.where(masked, 0.0, dweights * slope(xp, xp.where(masked, 0.0, scores)))


def softmax(scores: Array, ops: Engine = None) -> Array:
    """Row-wise softmax; a row without allowed scores is all 0."""
    return (ops or engine(array_namespace(scores))).softmax(scores)


def softmax_vjp(scores: Array, weights: Array, dweights: Array, ops: Engine = None) -> Array:
    """``weights * (dweights - sum(weights * dweights))``, row by row."""
    return (ops or engine(array_namespace(scores))).softmax_vjp(weights, dweights)


def relu(scores: Array, ops: Engine = None) -> Array:
    """`scores` where they are above 0, or NaN; a masked score is neither."""
    return (ops or engine(array_namespace(scores))).relu(scores)


def relu_vjp(scores: Array, weights: Array, dweights: Array, ops: Engine = None) -> Array:
    """`dweights` where the score is above 0, or NaN."""
    return (ops or engine(array_namespace(scores))).relu_vjp(scores, dweights)


def logsumexp(scores: Array) -> Array:
    """(G, C, 1): the logarithm of the sum of the exponentials of each row; -inf of none."""
    xp = array_namespace(scores)
    if scores.shape[-1] == 0:
        shape = (*scores.shape[:-1], 1)
        return xp.full(shape, -xp.inf, dtype=scores.dtype, device=device(scores))
    largest = xp.max(scores, axis=-1, keepdims=True)
    shift = xp.where(largest == -xp.inf, 0.0, largest)
    return xp.log(xp.sum(xp.exp(scores - shift), axis=-1, keepdims=True)) + shift


def _gelu(xp: Namespace, s: Array) -> Array:
    return s * _normal_cdf(xp, s)


def _gelu_slope(xp: Namespace, s: Array) -> Array:
    return _normal_cdf(xp, s) + s * xp.exp(-0.5 * s * s) / math.sqrt(2 * math.pi)


# The tanh form: 0.5 s (1 + tanh(u)), u = sqrt(2 / pi) (s + 0.044715 s^3).
_TANH_SCALE, _TANH_CUBE = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh(xp: Namespace, s: Array) -> Array:
    return 0.5 * s * (1 + xp.tanh(_TANH_SCALE * (s + _TANH_CUBE * s * s * s)))


def _gelu_tanh_slope(xp: Namespace, s: Array) -> Array:
    t = xp.tanh(_TANH_SCALE * (s + _TANH_CUBE * s * s * s))
    return 0.5 * (1 + t) + 0.5 * s * (1 - t * t) * _TANH_SCALE * (1 + 3 * _TANH_CUBE * s * s)


def _silu(xp: Namespace, s: Array) -> Array:
    return s * _sigmoid(xp, s)


def _silu_slope(xp: Namespace, s: Array) -> Array:
    sigmoid = _sigmoid(xp, s)
    return sigmoid * (1 + s * (1 - sigmoid))


def _identity(xp: Namespace, s: Array) -> Array:
    return s


def _identity_slope(xp: Namespace, s: Array) -> Array:
    return xp.ones_like(s)


def _sigmoid(xp: Namespace, s: Array) -> Array:
    return 0.5 * (1 + xp.tanh(0.5 * s))  # does not overflow


def _normal_cdf(xp: Namespace, s: Array) -> Array:
    return 0.5 * (1 + engine(xp).erf(s / math.sqrt(2)))


ACTIVATIONS = {
    "gelu": elementwise(_gelu, _gelu_slope),
    "gelu_tanh": elementwise(_gelu_tanh, _gelu_tanh_slope),
    "identity": elementwise(_identity, _identity_slope),
    "relu": Activation(relu, relu_vjp, by_element=True),
    "silu": elementwise(_silu, _silu_slope),
    "softmax": Activation(softmax, softmax_vjp, by_element=False),
}
"""The activations by name."""
