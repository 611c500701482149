"""Workers change nothing, to the last bit: not their number, nor who else computes beside them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from tests import calls
from tests.oracles import ACTIVATION_NAMES, assert_same_bits
from tests.strategies import AttentionProblem, FFNProblem, attention_QND, ffn_FD, seeds

each_attention = pytest.mark.parametrize(
    "attention", [calls.topk_attention, calls.dense_attention], ids=["topk", "dense"]
)
each_ffn = pytest.mark.parametrize("ffn", [calls.topk_ffn, calls.dense_ffn], ids=["topk", "dense"])
Call = Callable[..., calls.Run]
NUMBERS = (2, 3, 8)


def assert_identical(run: calls.Run, expected: calls.Run) -> None:
    assert_same_bits(run.out, expected.out)
    for grad, other in zip(run.grads, expected.grads, strict=True):
        assert_same_bits(grad, other)


def assert_workers_change_nothing(call: Call) -> None:
    """Assert that any number of workers, and any executor, give the bits of one worker."""
    one = call(workers=1)
    for workers in NUMBERS:
        assert_identical(call(workers=workers), one)
    with ThreadPoolExecutor(2) as pool:
        assert_identical(call(workers=pool), one)


def large_attention(seed: int) -> AttentionProblem:
    """Several heads on shared keys, in many chunks: sums whose order could vary."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return AttentionProblem(
        normal(2, 3, 100, 16),
        normal(2, 1, 130, 16),
        normal(3, 130, 8),
        normal(2, 3, 100, 8),
        k=11,
        chunk_size=9,
    )


def large_ffn(seed: int, activation: str) -> FFNProblem:
    """Many tokens in many chunks, on all optional arrays."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return FFNProblem(
        normal(3, 70, 16),
        normal(120, 16),
        normal(120, 8),
        normal(3, 70, 8),
        k=13,
        activation=activation,
        key_bias=normal(120),
        value_bias=normal(8),
        gate=normal(120, 16),
        select="activation",
        chunk_size=11,
    )


@each_attention
@given(problem=attention_QND(), poison=st.sampled_from([0.0, np.nan, np.inf]))
def test_workers_change_no_bit_of_attention(
    attention: Call, problem: AttentionProblem, poison: float
) -> None:
    query = problem.query.copy()
    query[..., 0, 0] = poison
    assert_workers_change_nothing(partial(attention, replace(problem, query=query)))


@each_attention
@pytest.mark.parametrize("seed", [0, 1])
def test_workers_change_no_bit_of_a_larger_attention(attention: Call, seed: int) -> None:
    assert_workers_change_nothing(partial(attention, large_attention(seed)))


@each_ffn
@given(problem=ffn_FD())
def test_workers_change_no_bit_of_the_ffn(ffn: Call, problem: FFNProblem) -> None:
    assert_workers_change_nothing(partial(ffn, problem))


@each_ffn
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_workers_change_no_bit_of_a_larger_ffn(ffn: Call, activation: str) -> None:
    assert_workers_change_nothing(partial(ffn, large_ffn(0, activation)))


@each_attention
def test_the_number_of_blas_threads_outside_changes_no_bit(attention: Call) -> None:
    problem = large_attention(2)
    with threadpool_limits(1, user_api="blas"):
        one = attention(problem, workers=1, chunk_size=None)
    with threadpool_limits(2, user_api="blas"):
        assert_identical(attention(problem, workers=1, chunk_size=None), one)


@each_attention
def test_calls_made_at_the_same_time_do_not_disturb_each_other(attention: Call) -> None:
    problems = [large_attention(seed) for seed in range(4)]
    alone = [attention(problem) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(partial(attention, workers=2), problems))
    for run, expected in zip(together, alone, strict=True):
        assert_identical(run, expected)


@each_attention
@given(problem=attention_QND(whole=True), seed=seeds)
def test_the_memory_budget_changes_no_selection(
    attention: Call, problem: AttentionProblem, seed: int
) -> None:
    roomy = attention(problem, chunk_size=None)
    tight = attention(problem, chunk_size=None, memory_budget=8 * 8 * 8 * problem.keys)
    np.testing.assert_allclose(tight.out, roomy.out, rtol=0, atol=1e-13 * problem.size)
    if attention is calls.topk_attention:
        assert_same_bits(tight.residuals.indices, roomy.residuals.indices)
