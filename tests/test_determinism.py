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
from tests.oracles import ACTIVATION_NAMES, assert_all_close, assert_close, assert_same_bits
from tests.strategies import AttentionProblem, FFNProblem, attention_QND, ffn_FD

# Small problems are cut up too, so that there is work for every thread.
pytestmark = pytest.mark.usefixtures("tiny_plans")

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
        normal(2, 3, 20, 16),
        normal(2, 1, 40, 16),
        normal(3, 40, 8),
        normal(2, 3, 20, 8),
        k=7,
    )


def large_ffn(seed: int, activation: str) -> FFNProblem:
    """Many tokens in many chunks, on all optional arrays."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return FFNProblem(
        normal(2, 17, 16),
        normal(40, 16),
        normal(40, 8),
        normal(2, 17, 8),
        k=7,
        activation=activation,
        key_bias=normal(40),
        value_bias=normal(8),
        gate=normal(40, 16),
        select="activation",
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
@given(problem=attention_QND(whole=True))
def test_the_memory_budget_changes_no_selection(attention: Call, problem: AttentionProblem) -> None:
    problem = replace(problem, chunk_size=None)
    with pytest.raises(ValueError, match="memory_budget must be at least") as error:
        attention(problem, memory_budget=1)
    least = next(int(word) for word in str(error.value).split() if word.isdigit())
    roomy, tight = attention(problem), attention(problem, memory_budget=least)
    assert_close(tight.out, roomy.out, size=problem.size)
    assert_all_close(tight.grads, roomy.grads, size=problem.size)
    if attention is calls.topk_attention:
        assert_same_bits(tight.residuals.indices, roomy.residuals.indices)
