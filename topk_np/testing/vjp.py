"""Gradients compared with finite differences along random directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import device

from topk_np._namespace import Array, array_namespace, dtype_name, to_numpy
from topk_np._vjp import check_pair
from topk_np.testing.close import EPSILON

DIRECTIONS = 3


def check_vjp(
    fwd: Callable[..., tuple[Array, Any]],
    bwd: Callable[[Any, Array], Any],
    /,
    *arrays: Array,
    seed: int = 0,
    **options: Any,
) -> None:
    """
    Assert that a backward pass gives the derivatives of its forward pass.

    Parameters
    ----------
    fwd : callable
        ``fwd(*arrays, **options) -> (out, residuals)``, such as `topk_np.topk_attention_fwd`.
    bwd : callable
        ``bwd(residuals, dout) -> gradients`` of the arrays, in their order.
    *arrays : array
        Where: float64 for sharp results, float32 for coarse ones. At no point of these the
        function may have a kink, as top-k has where two scores are equal.
    seed : int, default 0
        What the directions and `dout` are drawn from.
    **options
        For `fwd`.

    Raises
    ------
    AssertionError
        If a gradient is missing, has another shape than its array, or is wrong. The message names
        the array by its number, and says what the gradient gives and what differences give.
    TypeError
        If one of the functions cannot be called.

    Notes
    -----
    For each array x alone and random directions v, ``bwd(dout) . v`` is compared with
    ``dout . (f(x + h v) - f(x - h v)) / 2h``. With h = eps^(1/3) the rounding of f, about eps / h,
    and the truncation, about h^2, are both eps^(2/3). The tolerance is 64 times the rounding, for
    outputs of the size of those found, and the truncation as it is seen by taking 2h as well: of
    order h^2, it is four thirds of what the two differ by. One direction costs four forward passes.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_attention_bwd, topk_attention_fwd
    >>> from topk_np.testing import check_vjp
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 6, 4))
    >>> check_vjp(topk_attention_fwd, topk_attention_bwd, query, key, value, k=2)
    """
    check_pair(fwd, bwd)
    rng = np.random.default_rng(seed)
    out, residuals = fwd(*arrays, **options)
    dout = _like(out, rng.standard_normal(tuple(out.shape)))
    grads = tuple(bwd(residuals, dout))
    if len(grads) < len(arrays):
        raise AssertionError(f"{len(grads)} gradients came back for {len(arrays)} arrays")
    weights = to_numpy(dout).astype(np.float64)

    def loss(i: int, moved: Array) -> tuple[float, float]:
        """The loss with another array in place i, and the size of what it is summed from."""
        found = fwd(*arrays[:i], moved, *arrays[i + 1 :], **options)[0]
        terms = weights * to_numpy(found).astype(np.float64)
        return float(terms.sum()), float(np.abs(terms).sum())

    for i, (array, grad) in enumerate(zip(arrays, grads, strict=False)):
        if grad is None or tuple(grad.shape) != tuple(array.shape):
            got = "None" if grad is None else f"shape {tuple(grad.shape)}"
            raise AssertionError(
                f"the gradient of array {i} must have shape {tuple(array.shape)}, got {got}"
            )
        x, slope = (to_numpy(a).astype(np.float64) for a in (array, grad))
        eps = EPSILON[dtype_name(array)]
        step = eps ** (1 / 3)
        for _ in range(DIRECTIONS):
            direction = rng.standard_normal(x.shape)
            errors, size = [], 0.0
            for h in (step, 2 * step):
                above, below = (_like(array, x + sign * h * direction) for sign in (1, -1))
                (more, one), (less, other) = loss(i, above), loss(i, below)
                # As far as the array's dtype let it move.
                moved = to_numpy(above).astype(np.float64) - to_numpy(below)
                found, expected = float((slope * moved).sum()) / (2 * h), (more - less) / (2 * h)
                errors.append(found - expected)
                size = max(size, one, other)
            allowed = 64 * eps / step * size + 2 * abs(errors[1] - errors[0])
            if not abs(errors[1]) <= allowed:
                raise AssertionError(
                    f"the gradient of array {i} is wrong: along a random direction it gives "
                    f"{found:.6g}, finite differences {expected:.6g}, which may be off by "
                    f"{allowed:.1e}"
                )


def _like(array: Array, numbers: np.ndarray) -> Array:
    """`numbers` as an array of the library, device and dtype of another."""
    xp = array_namespace(array)
    return xp.asarray(numbers.astype(dtype_name(array)), device=device(array))
