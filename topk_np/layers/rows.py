"""Arrays (..., D) as matrices of rows, and the checks that layers share."""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import device

from topk_np._namespace import Array, Namespace, array_namespace


def as_rows(x: Array) -> Array:
    """`x` (..., D) as a matrix, a row for each leading index."""
    if x.ndim == 2:
        return x
    return array_namespace(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def last_mean(xp: Namespace, rows: Array, factors: Array | None = None) -> Array:
    """(T, 1): the mean of each row (T, D), of its products with `factors` if these are given."""
    width = max(1, rows.shape[1])
    if factors is None:
        factors = xp.ones((rows.shape[1],), dtype=rows.dtype, device=device(rows))
    # Products with a vector, or row by row, are faster than sums along the last axis.
    total = rows @ factors if factors.ndim == 1 else xp.vecdot(rows, factors)
    return total[:, None] / width


def check_vector(name: str, array: Array | None, like: str, length: int) -> None:
    """Check that `array`, where it is given, has one axis of the length of `like`."""
    if array is not None and tuple(array.shape) != (length,):
        raise ValueError(
            f"{name} must have shape ({length},), that of {like}, got {tuple(array.shape)}"
        )


def check_eps(eps: float) -> float:
    """Return `eps` if it is not negative."""
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    return eps


def check_residuals(residuals: Any, kind: type, function: str) -> None:
    """Check that `residuals` are what `function` gave."""
    if not isinstance(residuals, kind):
        raise TypeError(f"residuals must come from {function}, got {type(residuals).__name__}")
