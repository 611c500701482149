"""All options of attention at once, in random combination, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np
from tests import calls
from tests.backends import NUMPY, Backend
from tests.oracles import (
    assert_all_close,
    assert_close,
    assert_same_bits,
    dropout_by_loops,
    select_by_sorting,
    softmax_by_loops,
)
from tests.strategies import AttentionProblem, attention_with_options, seeds

pytestmark = pytest.mark.usefixtures("tiny_plans")


def expected_out(problem: AttentionProblem, pairs: np.ndarray) -> np.ndarray:
    """Attention over some pairs, from the oracles' scores."""
    scores = np.where(pairs, problem.scores, -np.inf)
    weights = np.apply_along_axis(lambda row: softmax_by_loops(list(row)), -1, scores)
    factors = dropout_by_loops(
        problem.lead, problem.queries, problem.keys, problem.dropout, problem.query_offset
    )
    return np.asarray((weights * factors) @ problem.value)


@given(problem=attention_with_options(whole=False), seed=seeds)
def test_the_log_sum_exp_of_all_keys_has_the_gradient_of_the_dense_one(
    xp: Backend, problem: AttentionProblem, seed: int
) -> None:
    problem = replace(problem, k=problem.keys, p=None)
    dlse = np.random.default_rng(seed).standard_normal(problem.dout.shape[:-1])
    inputs, options, dout = problem.on(xp)
    (_, _), residuals = topk_np.topk_attention_fwd(*inputs, **options, return_lse=True)
    found = topk_np.topk_attention_bwd(residuals, (dout, xp.asarray(dlse)))
    inputs, options, dout = problem.dense_on(xp)
    (_, _), kept = topk_np.dense_attention_fwd(*inputs, **options, return_lse=True)
    wanted = topk_np.dense_attention_bwd(kept, (dout, xp.asarray(dlse)))
    for one, other in zip(found, wanted, strict=True):
        if other is not None:
            assert_close(xp.to_numpy(one), xp.to_numpy(other), size=4 * problem.size)


def _finite(array: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(array), array, 0)


def beside(problem: AttentionProblem, pairs: np.ndarray) -> AttentionProblem:
    """The problem in which exactly these pairs may attend, with what is not a mask as it was."""
    offset = problem.query_offset
    if offset is None and problem.queries != problem.keys:
        offset = 0
    return replace(
        problem,
        mask=pairs,
        is_causal=False,
        window=None,
        query_lengths=None,
        key_lengths=None,
        query_offset=offset,
    )


@given(problem=attention_with_options())
def test_dense_attention_with_any_options_is_what_the_oracle_says(
    xp: Backend, problem: AttentionProblem
) -> None:
    run = calls.dense_attention(problem, xp)
    assert_close(run.out, expected_out(problem, problem.allowed), size=problem.size)


@given(problem=attention_with_options())
def test_with_all_keys_kept_topk_is_dense_with_any_options(
    xp: Backend, problem: AttentionProblem
) -> None:
    rule = {"k": problem.keys + 1} if problem.p is None else {"p": 1.0, "max_k": problem.keys}
    inputs, options, dout = problem.dense_on(xp)
    out, residuals = topk_np.topk_attention_fwd(*inputs, **options, **rule)
    run = calls.finish(xp, topk_np.topk_attention_bwd, out, residuals, dout)
    dense = calls.dense_attention(problem, xp)
    assert_close(run.out, dense.out, size=problem.size)
    assert_all_close(run.grads, dense.grads, size=problem.size)


@given(problem=attention_with_options())
def test_topk_is_dense_on_what_it_kept_with_any_options(
    xp: Backend, problem: AttentionProblem
) -> None:
    run = calls.topk_attention(problem, xp)
    pairs = calls.selected_pairs(xp.to_numpy(run.residuals.indices), problem.keys)
    assert not np.any(pairs & ~problem.allowed)
    dense = calls.dense_attention(beside(problem, pairs), xp)
    assert_close(run.out, dense.out, size=problem.size)
    assert_all_close(run.grads, dense.grads, size=problem.size)


@given(problem=attention_with_options())
def test_the_kept_keys_are_those_always_kept_and_the_best_of_the_others(
    xp: Backend, problem: AttentionProblem
) -> None:
    run = calls.topk_attention(problem, xp)
    indices = xp.to_numpy(run.residuals.indices)
    pairs = calls.selected_pairs(indices, problem.keys)
    always = problem.always_kept
    assert np.all(pairs[always])
    used = np.count_nonzero(indices >= 0, axis=-1)
    assert np.array_equal(used, np.count_nonzero(pairs, axis=-1))  # each key once
    assert np.all((np.diff(indices, axis=-1) > 0) | (indices[..., 1:] < 0))
    slack = 1e-9 * problem.size
    scores = problem.scores
    for place in np.ndindex(scores.shape[:-1]):
        others = np.where(always[place], -np.inf, scores[place])
        most = len(select_by_sorting(list(others), problem.k))
        kept = np.flatnonzero(pairs[place] & ~always[place])
        left = np.flatnonzero(problem.allowed[place] & ~pairs[place])
        if len(kept) and len(left):
            assert others[kept].min() >= others[left].max() - slack
        if problem.p is None:
            assert len(kept) == most
            continue
        # As few as reach p, or the most that there may be.
        weights = np.array(softmax_by_loops(list(scores[place])))
        mass = weights[pairs[place]].sum()
        assert len(kept) == most or mass >= problem.p - 1e-9
        if len(kept):
            assert mass - weights[kept].min() < problem.p + 1e-9


@pytest.mark.parametrize(
    ("first", "kept"),
    [(7, [[0, 4, 5], [0, 4, 5]]), (2, [[0, 1, 2], [0, 2, 3]]), (-2, [[0, -1, -1], [0, -1, -1]])],
)
def test_a_query_beyond_the_last_key_keeps_those_nearest_to_it(
    first: int, kept: list[list[int]]
) -> None:
    query, key = np.ones((2, 1)), -np.arange(6.0)[:, None]
    _, residuals = topk_np.topk_attention_fwd(
        query, key, key, k=1, always_keep=(0, 2), query_offset=first
    )
    assert residuals.indices.tolist() == kept


@given(problem=attention_with_options(), chunk_size=st.none() | st.integers(1, 3))
def test_chunks_change_rounding_only_and_workers_nothing_with_any_options(
    xp: Backend, problem: AttentionProblem, chunk_size: int | None
) -> None:
    for attention in (calls.dense_attention, calls.topk_attention):
        one = attention(problem, xp, workers=1)
        more = attention(problem, xp, workers=3)
        for first, second in zip((one.out, *one.grads), (more.out, *more.grads), strict=True):
            assert_same_bits(first, second)
    dense = calls.dense_attention(problem, xp, chunk_size=chunk_size)
    assert_close(dense.out, calls.dense_attention(problem, xp).out, size=problem.size)


@given(data=st.data(), problem=attention_with_options(whole=False))
def test_gradients_of_dense_attention_are_its_slopes_with_any_options(
    data: st.DataObject, problem: AttentionProblem
) -> None:
    """Central differences along a random direction of all inputs at once."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    run = calls.dense_attention(problem, NUMPY)
    bias = problem.bias.table if isinstance(problem.bias, topk_np.T5Bias) else problem.bias
    has_gradient = isinstance(bias, np.ndarray)
    assert (run.grads[3] is not None) == has_gradient
    inputs = [*problem.arrays, *([bias] if has_gradient else [])]
    directions = [rng.standard_normal(a.shape) for a in inputs]

    def loss(step: float) -> float:
        query, key, value, *rest = (
            np.asarray(a + step * d) for a, d in zip(inputs, directions, strict=True)
        )
        moved = problem.bias
        if rest:
            moved = rest[0] if moved is bias else replace(moved, table=rest[0])
        shifted = replace(problem, query=query, key=key, value=value, bias=moved)
        return float(np.sum(calls.dense_attention(shifted, NUMPY).out * problem.dout))

    step = 1e-5
    slope = (loss(step) - loss(-step)) / (2 * step)
    given_slope = sum(
        float(np.sum(g * d)) for g, d in zip(run.grads, directions, strict=False) if g is not None
    )
    curvature = problem.size * (1 + float(np.abs(problem.key).max(initial=0))) ** 3
    np.testing.assert_allclose(given_slope, slope, rtol=1e-6, atol=1e-7 * curvature)


@given(problem=attention_with_options())
def test_the_log_sum_exp_is_that_of_the_kept_scores(xp: Backend, problem: AttentionProblem) -> None:
    inputs, options, _ = problem.on(xp)
    (out, lse), residuals = topk_np.topk_attention_fwd(*inputs, **options, return_lse=True)
    pairs = calls.selected_pairs(xp.to_numpy(residuals.indices), problem.keys)
    scores = np.where(pairs, problem.scores, -np.inf)
    expected = np.logaddexp.reduce(scores, axis=-1)
    assert_close(xp.to_numpy(lse), expected, size=problem.size)
    assert_same_bits(xp.to_numpy(out), xp.to_numpy(topk_np.topk_attention(*inputs, **options)))


@given(data=st.data(), problem=attention_with_options(whole=False))
def test_partial_results_merge_by_their_log_sum_exp_forward_and_backward(
    xp: Backend, data: st.DataObject, problem: AttentionProblem
) -> None:
    """Dense attention over two halves of the keys, put together, and its gradients likewise."""
    problem = replace(problem, dropout=None)
    half = data.draw(st.integers(0, problem.keys))
    first = np.arange(problem.keys) < half
    parts = [beside(problem, problem.allowed & own) for own in (first, ~first)]
    runs = []
    for part in parts:
        inputs, options, _ = part.dense_on(xp)
        runs.append(topk_np.dense_attention_fwd(*inputs, **options, return_lse=True))
    outs = [xp.to_numpy(out) for (out, _), _ in runs]
    lses = [xp.to_numpy(lse)[..., None] for (_, lse), _ in runs]
    whole = np.logaddexp(*lses)
    shares = [np.exp(np.where(np.isfinite(lse), lse - _finite(whole), -np.inf)) for lse in lses]
    merged = shares[0] * outs[0] + shares[1] * outs[1]
    dense = calls.dense_attention(problem, xp)
    assert_close(merged, dense.out, size=problem.size)

    grads = []
    for share, out, (_, residuals) in zip(shares, outs, runs, strict=True):
        dout = share * problem.dout
        dlse = np.sum(share * problem.dout * (out - merged), axis=-1)
        got = topk_np.dense_attention_bwd(residuals, (xp.asarray(dout), xp.asarray(dlse)))
        grads.append([None if grad is None else xp.to_numpy(grad) for grad in got])
    summed = [None if one is None else one + two for one, two in zip(*grads, strict=True)]
    assert_all_close(summed, dense.grads, size=4 * problem.size)
