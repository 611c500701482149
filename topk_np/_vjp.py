"""The forward and backward functions of a trio as one function that returns a closure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from topk_np._namespace import Array

Grads = TypeVar("Grads")


def vjp(
    fwd: Callable[..., tuple[Array, Any]], bwd: Callable[[Any, Array], Grads], /
) -> Callable[..., tuple[Array, Callable[[Array], Grads]]]:
    """
    Join a forward and a backward function into one that returns a pullback.

    Parameters
    ----------
    fwd : callable
        ``fwd(*arrays, **options) -> (out, residuals)``, such as `topk_attention_fwd`.
    bwd : callable
        ``bwd(residuals, dout) -> gradients``, such as `topk_attention_bwd`.

    Returns
    -------
    callable
        ``f(*arrays, **options) -> (out, pullback)``, where ``pullback(dout)`` gives the gradients
        and may be called any number of times.

    Raises
    ------
    TypeError
        If one of them cannot be called.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import dense_ffn_bwd, dense_ffn_fwd, vjp
    >>> layer = vjp(dense_ffn_fwd, dense_ffn_bwd)
    >>> out, pullback = layer(np.array([2.0, -1.0]), np.eye(2), np.eye(2))
    >>> pullback(np.ones(2)).x
    array([1., 0.])
    """
    check_pair(fwd, bwd)

    def forward_with_pullback(*args: Any, **options: Any) -> tuple[Array, Callable[[Array], Grads]]:
        out, residuals = fwd(*args, **options)
        return out, lambda dout: bwd(residuals, dout)

    return forward_with_pullback


def check_pair(fwd: object, bwd: object) -> None:
    """Check that a forward and a backward function can be called."""
    for name, function in (("fwd", fwd), ("bwd", bwd)):
        if not callable(function):
            raise TypeError(f"{name} must be callable, got {type(function).__name__}")
