"""`vjp` joins a forward and a backward function; each trio says the same in its three forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

import topk_np
from tests import calls
from tests.backends import Backend
from tests.oracles import assert_same_bits
from tests.strategies import AttentionProblem, FFNProblem, attention_QND, ffn_FD

each_kind = pytest.mark.parametrize("kind", ["topk", "dense"])


def assert_pullback_is_the_backward_pass(
    xp: Backend, name: str, problem: AttentionProblem | FFNProblem, expected: calls.Run
) -> None:
    fwd, bwd = getattr(topk_np, f"{name}_fwd"), getattr(topk_np, f"{name}_bwd")
    dense = name.startswith("dense")
    inputs, options, dout = problem.dense_on(xp) if dense else problem.on(xp)
    out, pullback = topk_np.vjp(fwd, bwd)(*inputs, **options)
    assert_same_bits(xp.to_numpy(out), expected.out)
    for _ in range(2):
        grads = pullback(dout)
        assert isinstance(grads, topk_np.AttentionGrads | topk_np.FFNGrads)
        for grad, other in zip(grads, expected.grads, strict=True):
            assert_same_bits(None if grad is None else xp.to_numpy(grad), other)


@each_kind
@given(problem=attention_QND())
def test_the_pullback_of_attention_is_its_backward_pass(
    xp: Backend, kind: str, problem: AttentionProblem
) -> None:
    call = calls.topk_attention if kind == "topk" else calls.dense_attention
    assert_pullback_is_the_backward_pass(xp, f"{kind}_attention", problem, call(problem, xp))


@each_kind
@given(problem=ffn_FD())
def test_the_pullback_of_the_ffn_is_its_backward_pass(
    xp: Backend, kind: str, problem: FFNProblem
) -> None:
    call = calls.topk_ffn if kind == "topk" else calls.dense_ffn
    assert_pullback_is_the_backward_pass(xp, f"{kind}_ffn", problem, call(problem, xp))


def test_vjp_passes_arguments_on_and_keeps_each_calls_own_residuals() -> None:
    def fwd(x: float, *, factor: float) -> tuple[float, tuple[float, float]]:
        return factor * x * x, (x, factor)

    def bwd(residuals: tuple[float, float], dout: float) -> float:
        x, factor = residuals
        return 2 * factor * x * dout

    square = topk_np.vjp(fwd, bwd)
    (out, pullback), (other, other_pullback) = square(3.0, factor=2.0), square(5.0, factor=1.0)
    assert (out, pullback(1.0), pullback(10.0)) == (18.0, 12.0, 120.0)
    assert (other, other_pullback(1.0)) == (25.0, 10.0)


@pytest.mark.parametrize("arguments", [(None, np.sum), (np.sum, None), (3, 4)])
def test_what_cannot_be_called_is_refused(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(TypeError, match=r"(fwd|bwd) must be callable, got (NoneType|int)"):
        topk_np.vjp(*arguments)
