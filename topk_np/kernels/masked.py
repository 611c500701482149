"""A dense product in which pairs that are not allowed take no part, whatever they hold."""

from __future__ import annotations

from topk_np._namespace import Array, array_namespace
from topk_np.kernels import engine


def masked_matmul(weights: Array, allowed: Array, values: Array) -> Array:
    """``weights @ values`` over the allowed pairs alone; `weights` is 0 at the others."""
    return engine(array_namespace(weights)).masked_matmul(weights, allowed, values)
