"""What every layer has to stand: its gradients are slopes, on every library, at half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.backends import NUMPY, Backend
from tests.oracles import assert_all_close, assert_close, assert_rounded_once
from topk_np import vjp
from topk_np.testing import check_vjp


def grads_of(gradients: Any) -> tuple[Any, ...]:
    """The gradients of a trio as a tuple, also where there is only one."""
    return gradients if isinstance(gradients, tuple) else (gradients,)


def run(
    fwd: Callable[..., Any],
    bwd: Callable[..., Any],
    arrays: tuple[np.ndarray | None, ...],
    options: dict[str, Any],
    xp: Backend = NUMPY,
) -> tuple[np.ndarray, tuple[np.ndarray | None, ...]]:
    """Output and gradients as NumPy arrays; the gradient sent back is drawn."""
    out, pullback = vjp(fwd, bwd)(*xp.arrays(*arrays), **xp.options(options))
    dout = np.asarray(np.random.default_rng(5).standard_normal(out.shape))
    grads = grads_of(pullback(xp.asarray(dout.astype(xp.to_numpy(out).dtype))))
    return xp.to_numpy(out), tuple(None if g is None else xp.to_numpy(g) for g in grads)


def assert_layer(
    xp: Backend,
    fwd: Callable[..., Any],
    bwd: Callable[..., Any],
    *arrays: np.ndarray | None,
    data: int = 0,
    **options: Any,
) -> None:
    """
    Assert that a layer is right.

    Its gradients are slopes, in the dtype and shape of what they belong to; every library gives
    the same; inputs (read-only) are not shared with outputs. The first `data` arrays have no
    gradient; None stands for an array that is not given.
    """
    given = [i for i, array in enumerate(arrays) if i >= data and array is not None]
    out, grads = run(fwd, bwd, arrays, options)
    if xp is not NUMPY:
        found, found_grads = run(fwd, bwd, arrays, options, xp)
        assert_close(found, out, size=1e3)
        assert_all_close(found_grads, grads, size=1e3)
        return
    assert [i + data for i, grad in enumerate(grads) if grad is not None] == given
    for result in (out, *grads):
        assert not any(np.shares_memory(a, result) for a in arrays if a is not None and a.size)

    def some(*moved: np.ndarray) -> Any:
        full = list(arrays)
        for i, array in zip(given, moved, strict=True):
            full[i] = array
        return fwd(*full, **options)

    def backward(residuals: Any, dout: Any) -> Any:
        return tuple(grad for grad in grads_of(bwd(residuals, dout)) if grad is not None)

    check_vjp(some, backward, *(arrays[i] for i in given))


def assert_half_precision_is_rounded_once(
    fwd: Callable[..., Any],
    bwd: Callable[..., Any],
    *arrays: np.ndarray | None,
    **options: Any,
) -> None:
    """Assert that float16 and bfloat16 are computed in float32, and rounded at the end."""
    for dtype in (np.float16, ml_dtypes.bfloat16):
        halves: list[Any] = [
            a.astype(dtype) if a is not None and a.dtype.kind == "f" else a for a in arrays
        ]
        out, pullback = vjp(fwd, bwd)(*halves, **options)
        dout = np.ones(out.shape, out.dtype)
        wide = [h.astype(np.float32) if h is not None and h.dtype == dtype else h for h in halves]
        exact, exact_pullback = vjp(fwd, bwd)(*wide, **options)
        results = zip(
            (out, *grads_of(pullback(dout))),
            (exact, *grads_of(exact_pullback(np.ones(exact.shape, np.float32)))),
            strict=True,
        )
        for half, whole in results:
            if whole is not None:
                assert half.dtype in (dtype, np.float32)
                assert_rounded_once(half, whole)


def assert_refused(
    error: type[Exception], message: str, function: Callable[..., Any], *args: Any, **options: Any
) -> None:
    with pytest.raises(error, match=message):
        function(*args, **options)
