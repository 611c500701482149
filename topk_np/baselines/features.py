"""
Random features: maps phi whose products are, on average, the softmax's exponentials.

    exp(x . y) = mean of phi(x) . phi(y) over random vectors w ~ N(0, I)

A map gives phi up to a factor for each row, and the factor's logarithm beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from topk_np._namespace import Array, array_namespace, check_flag, check_integer


class FeatureMap(Protocol):
    """A map of rows x (..., n, D) to features, and its backward pass."""

    def features(self, x: Array) -> tuple[Array, Array]:
        """Features (..., n, F), to be multiplied by the exponentials of logarithms (..., n, 1)."""

    def bwd(self, x: Array, phi: Array, dphi: Array) -> Array:
        """The gradient of x (..., n, D) from that of phi, which held the factor's as well."""


@dataclass(frozen=True)
class PositiveFeatures:
    """
    ``exp(w . x - |x|^2 / 2)`` for each vector w, of x times `factor`.

    Choromanski et al. 2021, section 2.3, lemma 1, arXiv:2009.14794.
    """

    projection: Array
    """(F, D)"""
    factor: float = 1.0

    def features(self, x: Array) -> tuple[Array, Array]:
        """See `FeatureMap`: the row's largest exponent becomes 0, so that no feature overflows."""
        xp = array_namespace(x)
        x = x * self.factor
        exponents = x @ xp.matrix_transpose(self.projection)
        top = xp.max(exponents, axis=-1, keepdims=True)
        return xp.exp(exponents - top), top - xp.sum(x * x, axis=-1, keepdims=True) / 2

    def bwd(self, x: Array, phi: Array, dphi: Array) -> Array:
        """
        See `FeatureMap`.

        What is computed from features and factor does not depend on how their product is shared
        out between the two, so the largest exponent counts as a constant.
        """
        xp = array_namespace(x)
        dexponents = phi * dphi
        dnorm = xp.sum(dexponents, axis=-1, keepdims=True)
        return (dexponents @ self.projection - x * (self.factor * dnorm)) * self.factor


@dataclass(frozen=True)
class TrigonometricFeatures:
    """
    ``sin(w . x)`` and ``cos(w . x)`` for each vector w, of x scaled to the length `factor`.

    Their products are on average exp(-|x - y|^2 / 2), which is exp(x . y) times a constant since
    all lengths are equal. Peng et al. 2021, section 2.2, theorem 1, arXiv:2103.02143, by Rahimi and
    Recht 2007. A row of zeros stays one, and gets no gradient.
    """

    projection: Array
    """(F / 2, D)"""
    factor: float = 1.0

    def features(self, x: Array) -> tuple[Array, Array]:
        """See `FeatureMap`."""
        xp = array_namespace(x)
        angles = self.factor * (_unit(x)[0] @ xp.matrix_transpose(self.projection))
        waves = xp.concat([xp.sin(angles), xp.cos(angles)], axis=-1)
        return waves / math.sqrt(self.projection.shape[0]), xp.zeros_like(angles[..., :1])

    def bwd(self, x: Array, phi: Array, dphi: Array) -> Array:
        """See `FeatureMap`."""
        half = self.projection.shape[0]
        dangles = phi[..., half:] * dphi[..., :half] - phi[..., :half] * dphi[..., half:]
        return _unit_bwd(x, self.factor * (dangles @ self.projection))


def _unit(x: Array) -> tuple[Array, Array]:
    """Rows of length 1, and the lengths (..., n, 1) they had; 0 stays 0."""
    xp = array_namespace(x)
    length = xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))
    return x / xp.where(length > 0, length, xp.ones_like(length)), length


def _unit_bwd(x: Array, dunit: Array) -> Array:
    """The gradient across a row alone: along it, only the length changes, which is lost."""
    xp = array_namespace(x)
    unit, length = _unit(x)
    across = dunit - unit * xp.sum(unit * dunit, axis=-1, keepdims=True)
    return xp.where(length > 0, across / length, xp.zeros_like(x))


def draw_projection(
    features: int, width: int, /, *, seed: int = 0, orthogonal: bool = True
) -> np.ndarray:
    """
    Draw random vectors, each by itself normally distributed.

    Parameters
    ----------
    features : int
        Number of vectors F.
    width : int
        Their length D, that of queries and keys.
    seed : int, default 0
        What they are drawn from.
    orthogonal : bool, default True
        Whether each D of them are orthogonal, which makes estimates vary less; else all are
        independent.

    Returns
    -------
    NumPy array (F, D)
        In float64.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If `features` is less than 1, or `width` or `seed` less than 0.

    Notes
    -----
    Orthogonal vectors are the rows of uniformly distributed rotations, stretched to the lengths of
    independent normal vectors: Choromanski et al. 2021, section 2.4, arXiv:2009.14794. Time is
    O(F D^2).

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.baselines import draw_projection
    >>> vectors = draw_projection(6, 3)
    >>> np.round(vectors[:3] @ vectors[:3].T, 12) != 0
    array([[ True, False, False],
           [False,  True, False],
           [False, False,  True]])
    """
    features = check_integer("features", features, least=1)
    width = check_integer("width", width, least=0)
    rng = np.random.default_rng(check_integer("seed", seed, least=0))
    if not check_flag("orthogonal", orthogonal) or width == 0:
        return rng.standard_normal((features, width))
    turns, triangles = np.linalg.qr(rng.standard_normal((-(-features // width), width, width)))
    # Uniform only with the signs that make the triangles' diagonals positive (Mezzadri 2007).
    turns *= np.sign(np.diagonal(triangles, axis1=1, axis2=2))[:, None, :]
    directions = turns.mT.reshape(-1, width)[:features]
    lengths = np.linalg.norm(rng.standard_normal((features, width)), axis=1, keepdims=True)
    return np.asarray(directions * lengths)
