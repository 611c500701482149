"""The dense functions, which everything else is compared with, against loops and differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np
from tests import calls
from tests.backends import Backend
from tests.oracles import (
    ACTIVATION_NAMES,
    assert_all_close,
    assert_close,
    attention_by_loops,
    ffn_by_loops,
)
from tests.strategies import AttentionProblem, FFNProblem, attention_QND, ffn_FD, seeds


def assert_gradients_are_slopes(
    loss: Callable[..., float],
    inputs: tuple[Any, ...],
    grads: tuple[np.ndarray | None, ...],
    seed: int,
) -> None:
    """Assert that gradients predict the change of `loss` along a random direction of all inputs.

    Richardson's step removes the leading error of the central difference, so that the tolerance
    can be tight.
    """
    rng = np.random.default_rng(seed)
    directions = [None if x is None else rng.standard_normal(x.shape) for x in inputs]

    def slope(h: float) -> float:
        ahead, behind = (
            loss(*(x if d is None else x + s * d for x, d in zip(inputs, directions, strict=True)))
            for s in (h, -h)
        )
        return (ahead - behind) / (2 * h)

    h = 1e-4
    expected = (4 * slope(h / 2) - slope(h)) / 3
    products = [
        np.sum(grad * d)
        for grad, d in zip(grads, directions, strict=True)
        if grad is not None and d is not None
    ]
    size = sum(map(abs, products)) + abs(loss(*inputs))
    np.testing.assert_allclose(sum(products), expected, rtol=0, atol=1e-8 * (1 + size))


@given(problem=attention_QND())
def test_dense_attention_is_the_triple_loop(xp: Backend, problem: AttentionProblem) -> None:
    inputs, options, _ = problem.dense_on(xp)
    out = xp.to_numpy(topk_np.dense_attention(*inputs, **options))
    expected = attention_by_loops(*problem.arrays, problem.allowed, problem.true_scale)
    assert_close(out, expected, size=problem.size)


@given(problem=attention_QND(whole=False), seed=seeds)
def test_dense_attention_gradients_are_slopes(problem: AttentionProblem, seed: int) -> None:
    def loss(*arrays: np.ndarray) -> float:
        return float(
            np.sum(problem.dout * topk_np.dense_attention(*arrays, **problem.dense_options))
        )

    query, key, value, _ = calls.dense_attention(problem).grads
    assert_gradients_are_slopes(loss, problem.arrays, (query, key, value), seed)


@given(problem=attention_QND())
def test_dense_attention_is_the_same_on_every_library(
    xp: Backend, problem: AttentionProblem
) -> None:
    run, reference = calls.dense_attention(problem, xp), calls.dense_attention(problem)
    assert_close(run.out, reference.out, size=problem.size)
    assert_all_close(run.grads, reference.grads, size=problem.size)


@given(problem=attention_QND(), size=st.integers(1, 7))
def test_chunks_of_queries_change_dense_attention_by_rounding_alone(
    problem: AttentionProblem, size: int
) -> None:
    whole = calls.dense_attention(problem, chunk_size=None)
    chunked = calls.dense_attention(problem, chunk_size=size)
    assert_close(chunked.out, whole.out, size=problem.size)
    assert_all_close(chunked.grads, whole.grads, size=problem.size)


@given(problem=ffn_FD())
def test_dense_ffn_is_the_triple_loop(xp: Backend, problem: FFNProblem) -> None:
    inputs, options, _ = problem.dense_on(xp)
    out = xp.to_numpy(topk_np.dense_ffn(*inputs, **options))
    expected, _ = ffn_by_loops(*problem.arrays, activation=problem.activation, **problem.optional)
    assert_close(out, expected, size=problem.size)


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("gated", [False, True])
@given(data=st.data(), seed=seeds)
def test_dense_ffn_gradients_are_slopes(
    activation: str, gated: bool, data: st.DataObject, seed: int
) -> None:
    problem = data.draw(ffn_FD(whole=False, activation=activation, gated=gated))
    if activation == "relu":
        problem = away_from_the_kink(problem)

    def loss(*arrays: Any) -> float:
        *inputs, key_bias, value_bias, gate = arrays
        given = {"key_bias": key_bias, "value_bias": value_bias, "gate": gate}
        options = {**problem.dense_options, **given}
        return float(np.sum(problem.dout * topk_np.dense_ffn(*inputs, **options)))

    inputs = (*problem.arrays, *problem.optional.values())
    assert_gradients_are_slopes(loss, inputs, calls.dense_ffn(problem).grads, seed)


def away_from_the_kink(problem: FFNProblem) -> FFNProblem:
    """The problem without the tokens that have a score so near 0 that a small step crosses it."""
    matrix = problem.keys if problem.gate is None else problem.gate
    bias = problem.key_bias if problem.gate is None and problem.key_bias is not None else 0.0
    scores = problem.x @ matrix.T + bias
    near = np.any(np.abs(scores) < 0.01, axis=-1, keepdims=True)
    return replace(problem, dout=np.where(near, 0.0, problem.dout))


@given(problem=ffn_FD())
def test_dense_ffn_is_the_same_on_every_library(xp: Backend, problem: FFNProblem) -> None:
    run, reference = calls.dense_ffn(problem, xp), calls.dense_ffn(problem)
    assert_close(run.out, reference.out, size=problem.size)
    assert_all_close(run.grads, reference.grads, size=problem.size)


@given(problem=ffn_FD(), size=st.integers(1, 6))
def test_chunks_of_tokens_change_the_dense_ffn_by_rounding_alone(
    problem: FFNProblem, size: int
) -> None:
    whole = calls.dense_ffn(problem, chunk_size=None)
    chunked = calls.dense_ffn(problem, chunk_size=size)
    assert_close(chunked.out, whole.out, size=problem.size)
    assert_all_close(chunked.grads, whole.grads, size=problem.size)


@given(problem=attention_QND())
def test_dense_residuals_keep_nothing(xp: Backend, problem: AttentionProblem) -> None:
    assert calls.dense_attention(problem, xp).residuals.nbytes == 0
