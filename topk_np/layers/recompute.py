"""Recomputation: the backward pass runs the forward pass again instead of having kept of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from topk_np._namespace import Array
from topk_np._vjp import check_pair
from topk_np.layers.rows import check_residuals

Grads = TypeVar("Grads")


@dataclass(frozen=True, eq=False)
class Recomputed:
    """What makes residuals again: a forward function and what it was called with."""

    fwd: Callable[..., tuple[Any, Any]]
    arguments: tuple[Any, ...] = field(repr=False)
    options: dict[str, Any] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return 0

    def residuals(self) -> Any:
        """What the forward function keeps."""
        _, residuals = self.fwd(*self.arguments, **self.options)
        return residuals


def recomputed(
    fwd: Callable[..., tuple[Array, Any]], bwd: Callable[[Any, Array], Grads], /
) -> tuple[Callable[..., tuple[Array, Recomputed]], Callable[[Recomputed, Array], Grads]]:
    """
    A forward and a backward function that keep the inputs alone between them.

    Where layers follow each other, memory then grows by one input a layer, whatever is inside of
    it, and time by a second forward pass. Gradients are the same bit for bit.

    Parameters
    ----------
    fwd : callable
        ``fwd(*arrays, **options) -> (out, residuals)``; what it draws, it draws from a seed.
    bwd : callable
        ``bwd(residuals, dout) -> gradients``.

    Returns
    -------
    fwd, bwd : callable
        The same functions of the same arguments.

    Raises
    ------
    TypeError
        If one of them cannot be called.

    Notes
    -----
    Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016, arXiv:1604.06174.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_ffn_bwd, topk_ffn_fwd
    >>> from topk_np.layers import recomputed
    >>> fwd, bwd = recomputed(topk_ffn_fwd, topk_ffn_bwd)
    >>> out, residuals = fwd(np.ones((3, 2)), np.eye(2), np.eye(2), k=1)
    >>> residuals.nbytes
    0
    >>> bwd(residuals, out).values
    array([[3., 0.],
           [0., 0.]])
    """
    check_pair(fwd, bwd)

    def keep_inputs(*arguments: Any, **options: Any) -> tuple[Array, Recomputed]:
        out, _ = fwd(*arguments, **options)
        return out, Recomputed(fwd, arguments, options)

    def make_again(kept: Recomputed, dout: Array) -> Grads:
        check_residuals(kept, Recomputed, "the forward function of this pair")
        return bwd(kept.residuals(), dout)

    return keep_inputs, make_again


def made_again(residuals: Any, /) -> Any:
    """Residuals, made again where only the inputs were kept."""
    return residuals.residuals() if isinstance(residuals, Recomputed) else residuals
