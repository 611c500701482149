"""`check_vjp` takes right gradients and refuses wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import topk_np
from tests.backends import Backend
from topk_np.testing import check_vjp

rng = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_our_own_backward_passes_are_right(xp: Backend, dtype: str) -> None:
    arrays = xp.arrays(*(rng.standard_normal((2, 6, 4)).astype(dtype) for _ in range(3)))
    check_vjp(topk_np.topk_attention_fwd, topk_np.topk_attention_bwd, *arrays, k=3)
    check_vjp(topk_np.dense_attention_fwd, topk_np.dense_attention_bwd, *arrays, is_causal=True)


def fwd(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, Any]:
    return np.sin(x) * y, (x, y)


def bwd(residuals: Any, dout: np.ndarray) -> tuple[Any, ...]:
    x, y = residuals
    return np.cos(x) * y * dout, np.sin(x) * dout


X, Y = rng.standard_normal((2, 3, 4))


@pytest.mark.parametrize("factor", [1 + 1e-6, 0.0, -1.0, 2.0])
@pytest.mark.parametrize("place", [0, 1])
def test_a_gradient_that_is_off_is_named(place: int, factor: float) -> None:
    def wrong(residuals: Any, dout: np.ndarray) -> list[np.ndarray]:
        grads = list(bwd(residuals, dout))
        grads[place] = factor * grads[place]
        return grads

    check_vjp(fwd, bwd, X, Y)
    with pytest.raises(AssertionError, match=f"gradient of array {place} is wrong"):
        check_vjp(fwd, wrong, X, Y)


def test_one_wrong_element_of_many_is_found() -> None:
    x, y = rng.standard_normal((2, 30, 30))

    def wrong(residuals: Any, dout: np.ndarray) -> tuple[Any, ...]:
        dx, dy = bwd(residuals, dout)
        dx[7, 8] = 0
        return dx, dy

    with pytest.raises(AssertionError, match="array 0 is wrong"):
        check_vjp(fwd, wrong, x, y)


def test_a_complex_step_finds_what_differences_are_too_coarse_for() -> None:
    def wrong(residuals: Any, dout: np.ndarray) -> tuple[Any, ...]:
        dx, dy = bwd(residuals, dout)
        return dx, (1 + 1e-11) * dy

    check_vjp(fwd, wrong, X, Y)
    check_vjp(fwd, bwd, X, Y, complex_step=True)
    with pytest.raises(AssertionError, match=r"array 1 is wrong.*a complex step"):
        check_vjp(fwd, wrong, X, Y, complex_step=True)
    single = X.astype(np.float32), Y.astype(np.float32)
    check_vjp(fwd, bwd, *single, complex_step=True)


def test_a_complex_step_is_refused_by_what_takes_no_complex_arrays() -> None:
    arrays = rng.standard_normal((3, 2, 2))
    pair = topk_np.topk_attention_fwd, topk_np.topk_attention_bwd
    with pytest.raises(TypeError, match=r"query must have dtype float16.*got complex128"):
        check_vjp(*pair, *arrays, k=1, complex_step=True)


def test_missing_and_misshapen_gradients_are_refused() -> None:
    for wrong, message in (
        (lambda r, dout: bwd(r, dout)[:1], "1 gradients came back for 2 arrays"),
        (lambda r, dout: (None, dout), r"array 0 must have shape \(3, 4\), got None"),
        (lambda r, dout: (dout[:2], dout), r"array 0 must have shape \(3, 4\), got shape \(2, 4\)"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_vjp(fwd, wrong, X, Y)
    with pytest.raises(TypeError, match="bwd must be callable"):
        check_vjp(fwd, None, X, Y)  # type: ignore[arg-type]
