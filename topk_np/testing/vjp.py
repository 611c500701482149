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
COMPLEX_STEP = 1e-20  # its square vanishes beside 1, and float32 still holds it

Terms = Callable[[int, Array], np.ndarray]


def check_vjp(
    fwd: Callable[..., tuple[Array, Any]],
    bwd: Callable[[Any, Array], Any],
    /,
    *arrays: Array,
    seed: int = 0,
    complex_step: bool = False,
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
    complex_step : bool, default False
        Whether to take derivatives by a complex step, exact to rounding, and not by differences.
        For an `fwd` that takes complex arrays and is analytic in them as it is written: with
        ``x * x``, not ``abs(x) ** 2``. This package's own functions are not: they refuse complex
        arrays, as complex scores have no largest.
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

    A complex step compares with ``dout . Im f(x + i h v) / h`` instead. Nothing cancels in it, so
    that h may be so small that the truncation vanishes, and the tolerance is 64 times the rounding
    of numbers of the size of those found. It costs one forward pass. Source: Squire and Trapp,
    *Using Complex Variables to Estimate Derivatives of Real Functions*, 1998.

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

    def terms(i: int, moved: Array) -> np.ndarray:
        """The terms of the loss, with another array in place i."""
        found = fwd(*arrays[:i], moved, *arrays[i + 1 :], **options)[0]
        return np.asarray(weights * _to_wide(found))

    for i, (array, grad) in enumerate(zip(arrays, grads, strict=False)):
        if grad is None or tuple(grad.shape) != tuple(array.shape):
            got = "None" if grad is None else f"shape {tuple(grad.shape)}"
            raise AssertionError(
                f"the gradient of array {i} must have shape {tuple(array.shape)}, got {got}"
            )
        x, slope = (to_numpy(a).astype(np.float64) for a in (array, grad))
        for _ in range(DIRECTIONS):
            direction = rng.standard_normal(x.shape)
            if complex_step:
                found, expected, allowed = _by_complex_step(terms, i, array, slope, direction)
            else:
                found, expected, allowed = _by_differences(terms, i, array, x, slope, direction)
            if not abs(found - expected) <= allowed:
                raise AssertionError(
                    f"the gradient of array {i} is wrong: along a random direction it gives "
                    f"{found:.6g}, {'a complex step' if complex_step else 'finite differences'} "
                    f"{expected:.6g}, which may be off by {allowed:.1e}"
                )


def _by_differences(
    terms: Terms, i: int, array: Array, x: np.ndarray, slope: np.ndarray, direction: np.ndarray
) -> tuple[float, float, float]:
    """The derivative along a direction by the gradient, by differences, and what is allowed."""
    eps = EPSILON[dtype_name(array)]
    step = eps ** (1 / 3)
    errors, size = [], 0.0
    for h in (step, 2 * step):
        above, below = (_like(array, x + sign * h * direction) for sign in (1, -1))
        more, less = terms(i, above), terms(i, below)
        # As far as the array's dtype let it move.
        moved = to_numpy(above).astype(np.float64) - to_numpy(below)
        found = float((slope * moved).sum()) / (2 * h)
        expected = float(more.sum() - less.sum()) / (2 * h)
        errors.append(found - expected)
        size = max(size, float(np.abs(more).sum()), float(np.abs(less).sum()))
    return found, expected, 64 * eps / step * size + 2 * abs(errors[1] - errors[0])


def _by_complex_step(
    terms: Terms, i: int, array: Array, slope: np.ndarray, direction: np.ndarray
) -> tuple[float, float, float]:
    """The same by a complex step."""
    xp, eps = array_namespace(array), EPSILON[dtype_name(array)]
    wide = xp.complex64 if dtype_name(array) == "float32" else xp.complex128
    along = _like(array, direction)
    moved = terms(i, xp.astype(array, wide) + COMPLEX_STEP * 1j * xp.astype(along, wide))
    expected = moved.imag / COMPLEX_STEP
    products = slope * to_numpy(along).astype(np.float64)
    size = float(sum(np.abs(part).sum() for part in (moved.real, expected, products)))
    return float(products.sum()), float(expected.sum()), 64 * eps * size


def _to_wide(array: Array) -> np.ndarray:
    """An array in NumPy, in float64 or complex128."""
    xp = array_namespace(array)
    if not xp.isdtype(array.dtype, "complex floating"):
        return to_numpy(array).astype(np.float64)
    return np.asarray(to_numpy(xp.real(array)) + 1j * to_numpy(xp.imag(array)))


def _like(array: Array, numbers: np.ndarray) -> Array:
    """`numbers` as an array of the library, device and dtype of another."""
    xp = array_namespace(array)
    return xp.asarray(numbers.astype(dtype_name(array)), device=device(array))
