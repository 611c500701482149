"""Top-k attention is dense attention over the keys it selects, and it selects the right ones."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import topk_np
from tests import calls
from tests.backends import Backend
from tests.oracles import (
    assert_all_close,
    assert_close,
    assert_same_bits,
    attention_by_loops,
    select_by_sorting,
    sum_to_shape,
)
from tests.strategies import AttentionProblem, attention_QND, seeds
from tests.test_dense import assert_gradients_are_slopes
from topk_np.options.check import AttentionOptions

pytestmark = pytest.mark.usefixtures("tiny_plans")


@given(problem=attention_QND(), extra=st.integers(0, 3))
def test_topk_equals_dense_when_k_covers_all_keys(
    xp: Backend, problem: AttentionProblem, extra: int
) -> None:
    topk = calls.topk_attention(problem, xp, k=problem.keys + extra)
    dense = calls.dense_attention(problem, xp)
    assert_close(topk.out, dense.out, size=problem.size)
    assert_all_close(topk.grads, dense.grads, size=problem.size)


@given(problem=attention_QND())
def test_topk_equals_dense_restricted_to_the_selected_keys(
    xp: Backend, problem: AttentionProblem
) -> None:
    topk = calls.topk_attention(problem, xp)
    indices = xp.to_numpy(topk.residuals.indices)
    dense = calls.dense_attention(calls.restricted(problem, indices), xp)
    assert_close(topk.out, dense.out, size=problem.size)
    assert_all_close(topk.grads, dense.grads, size=problem.size)


@given(problem=attention_QND(whole=True))
def test_topk_attention_is_the_triple_loop(xp: Backend, problem: AttentionProblem) -> None:
    inputs, options, _ = problem.on(xp)
    out = xp.to_numpy(topk_np.topk_attention(*inputs, **options))
    scale = problem.true_scale
    expected = attention_by_loops(*problem.arrays, problem.allowed, scale, problem.k)
    assert_close(out, expected, size=problem.size)


@given(problem=attention_QND(whole=True))
def test_the_selected_keys_are_the_k_best_with_the_lower_index_first_among_equals(
    xp: Backend, problem: AttentionProblem
) -> None:
    _, residuals = topk_np.topk_attention_fwd(*problem.on(xp)[0], **problem.on(xp)[1])
    indices, kept = xp.to_numpy(residuals.indices), xp.to_numpy(residuals.scores)
    scores = problem.ranks
    assert indices.shape == kept.shape == (*scores.shape[:-1], min(problem.k, problem.keys))
    assert indices.dtype == np.int32
    for place in np.ndindex(scores.shape[:-1]):
        chosen = select_by_sorting(scores[place].tolist(), problem.k)
        free = len(indices[place]) - len(chosen)
        assert indices[place].tolist() == chosen + [-1] * free
        expected = np.append(abs(problem.true_scale) * scores[place][chosen], [-np.inf] * free)
        assert_close(kept[place], expected, size=problem.size)


@given(problem=attention_QND(whole=True, keys=st.integers(9, 60)), k=st.integers(1, 5))
def test_the_k_best_of_many_blocks_of_keys_are_the_k_best_of_all(
    xp: Backend, problem: AttentionProblem, k: int
) -> None:
    problem = replace(problem, k=k)
    topk = calls.topk_attention(problem, xp)
    indices = xp.to_numpy(topk.residuals.indices)
    scores = problem.ranks
    for place in np.ndindex(scores.shape[:-1]):
        chosen = select_by_sorting(scores[place].tolist(), k)
        assert indices[place].tolist() == chosen + [-1] * (k - len(chosen))
    dense = calls.dense_attention(calls.restricted(problem, indices), xp)
    assert_close(topk.out, dense.out, size=problem.size)
    assert_all_close(topk.grads, dense.grads, size=problem.size)


@given(problem=attention_QND(whole=True), size=st.integers(1, 7))
def test_chunk_size_changes_no_selection_and_results_by_rounding_alone(
    xp: Backend, problem: AttentionProblem, size: int
) -> None:
    one = calls.topk_attention(problem, xp, chunk_size=None)
    other = calls.topk_attention(problem, xp, chunk_size=size)
    assert_same_bits(xp.to_numpy(one.residuals.indices), xp.to_numpy(other.residuals.indices))
    assert_close(other.out, one.out, size=problem.size)
    assert_all_close(other.grads, one.grads, size=problem.size)


@given(problem=attention_QND(whole=True))
def test_every_library_selects_the_same_keys(xp: Backend, problem: AttentionProblem) -> None:
    run, reference = calls.topk_attention(problem, xp), calls.topk_attention(problem)
    indices = reference.residuals.indices
    assert_same_bits(xp.to_numpy(run.residuals.indices), indices)
    assert_close(run.out, reference.out, size=problem.size)
    assert_all_close(run.grads, reference.grads, size=problem.size)


@given(problem=attention_QND(whole=False, masks=False), seed=seeds)
def test_permuting_keys_permutes_their_gradients_and_changes_nothing_else(
    xp: Backend, problem: AttentionProblem, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(problem.keys)
    mask = np.random.default_rng(seed).random((problem.queries, problem.keys)) < 0.8
    key, value = problem.key[..., order, :], problem.value[..., order, :]
    one = calls.topk_attention(replace(problem, mask=mask), xp)
    other = calls.topk_attention(replace(problem, key=key, value=value, mask=mask[:, order]), xp)
    assert_close(other.out, one.out, size=problem.size)
    dquery, dkey, dvalue, _ = one.grads
    assert dkey is not None
    assert dvalue is not None
    expected = (dquery, dkey[..., order, :], dvalue[..., order, :], None)
    assert_all_close(other.grads, expected, size=problem.size)


@given(problem=attention_QND(), seed=seeds)
def test_keys_that_no_query_selects_get_exactly_zero_gradient(
    xp: Backend, problem: AttentionProblem, seed: int
) -> None:
    # Non-finite numbers where they can do the most harm: even those must not reach other keys.
    dout = problem.dout.copy()
    rng = np.random.default_rng(seed)
    dout[rng.random(dout.shape) < 0.2] = rng.choice([np.nan, np.inf])
    run = calls.topk_attention(replace(problem, dout=dout), xp)
    pairs = calls.selected_pairs(xp.to_numpy(run.residuals.indices), problem.keys)
    takers = pairs.sum(axis=-2)  # (..., N): how many queries of each head select a key
    _, dkey, dvalue, _ = run.grads
    for grad in (dkey, dvalue):
        assert grad is not None
        assert (grad[sum_to_shape(takers, grad.shape[:-1]) == 0] == 0).all()


@given(problem=attention_QND(whole=False), shift=st.sampled_from([-1000.0, 3.0, 1000.0]))
def test_adding_a_constant_to_all_scores_changes_nothing(
    xp: Backend, problem: AttentionProblem, shift: float
) -> None:
    """A further column, 1 in every query and constant in every key, shifts every score alike."""
    ones = np.ones((*problem.query.shape[:-1], 1))
    column = np.full((*problem.key.shape[:-1], 1), shift / problem.true_scale)
    shifted = replace(
        problem,
        query=np.concatenate([problem.query, ones], axis=-1),
        key=np.concatenate([problem.key, column], axis=-1),
        scale=problem.true_scale,
    )
    for call in (calls.topk_attention, calls.dense_attention):
        one, other = call(problem, xp), call(shifted, xp)
        size = problem.size * (1 + abs(shift))
        assert_close(other.out, one.out, size=size)
        dquery, dkey, dvalue, _ = other.grads
        assert dquery is not None
        assert dkey is not None
        grads = (dquery[..., :-1], dkey[..., :-1], dvalue, None)
        assert_all_close(grads, one.grads, size=size)


@given(problem=attention_QND(whole=False), seed=seeds)
def test_topk_attention_gradients_are_slopes(problem: AttentionProblem, seed: int) -> None:
    run = calls.topk_attention(problem)
    kept = run.residuals.indices

    def loss(*arrays: np.ndarray) -> float:
        out, residuals = topk_np.topk_attention_fwd(*arrays, **problem.options)
        assume(np.array_equal(residuals.indices, kept))  # no key may enter or leave on the way
        return float(np.sum(problem.dout * out))

    query, key, value, _ = run.grads
    assert_gradients_are_slopes(loss, problem.arrays, (query, key, value), seed)


@given(problem=attention_QND(), seed=seeds)
def test_k_of_one_copies_the_value_of_the_best_key(
    xp: Backend, problem: AttentionProblem, seed: int
) -> None:
    run = calls.topk_attention(problem, xp, k=1)
    best = xp.to_numpy(run.residuals.indices)
    value = np.broadcast_to(problem.value, (*problem.lead, *problem.value.shape[-2:]))
    copied = np.take_along_axis(value, np.maximum(best, 0), axis=-2)
    # Its weight is 1, by which short heads divide last: that may round.
    expected = np.where(best < 0, np.zeros((), copied.dtype), copied)
    np.testing.assert_allclose(run.out, expected, rtol=4 * np.finfo(copied.dtype).eps, atol=0)


@given(problem=attention_QND(whole=True, masks=False))
def test_scale_zero_ties_all_keys_so_the_first_k_share_equally(
    xp: Backend, problem: AttentionProblem
) -> None:
    run = calls.topk_attention(problem, xp, scale=0.0)
    mean = problem.value[..., : problem.k, :].mean(axis=-2, keepdims=True)
    assert_close(run.out, np.broadcast_to(mean, run.out.shape).copy(), size=problem.size)
    dquery, dkey, _, _ = run.grads
    assert (np.asarray(dquery) == 0).all()
    assert (np.asarray(dkey) == 0).all()


def test_grouped_heads_equal_repeated_keys_with_gradients_summed(xp: Backend) -> None:
    rng = np.random.default_rng(0)
    query, dout = rng.standard_normal((2, 1, 3, 5, 6)), rng.standard_normal((2, 1, 3, 5, 2))
    key, value = rng.standard_normal((2, 1, 1, 7, 6)), rng.standard_normal((1, 1, 7, 2))
    grouped = AttentionProblem(query, key, value, dout, k=3)
    repeated = replace(
        grouped,
        key=np.repeat(key, 3, axis=2),
        value=np.broadcast_to(value, (2, 1, 3, 7, 2)).copy(),
    )
    for call in (calls.topk_attention, calls.dense_attention):
        one, other = call(grouped, xp), call(repeated, xp)
        assert_close(one.out, other.out, size=grouped.size)
        dquery, dkey, dvalue, _ = other.grads
        assert dkey is not None
        assert dvalue is not None
        summed = (
            dquery,
            sum_to_shape(dkey, key.shape),
            sum_to_shape(dvalue, value.shape),
            None,
        )
        assert_all_close(one.grads, summed, size=10 * grouped.size)


def test_a_score_that_scaling_makes_minus_infinite_is_masked() -> None:
    query = np.full((1, 1), -1e30, np.float32)
    key = np.asarray([[1e7], [1e-30]], np.float32)
    value = np.asarray([[np.nan], [7.0]], np.float32)
    for out in (
        topk_np.topk_attention(query, key, value, k=2, scale=1e3),
        topk_np.dense_attention(query, key, value, scale=1e3),
    ):
        assert out == 7


def test_a_scale_that_is_next_to_nothing_hides_nothing_and_shows_nothing_masked() -> None:
    x = np.random.default_rng(0).standard_normal((4, 6, 2)).astype(np.float32)
    topk = topk_np.topk_attention(x, x, x, k=6, scale=1e-46, is_causal=True)
    dense = topk_np.dense_attention(x, x, x, scale=1e-46, is_causal=True)
    np.testing.assert_allclose(topk, dense, rtol=1e-5)
    assert np.isfinite(dense).all()


def test_queries_far_before_all_keys_see_none() -> None:
    x = np.ones((4, 2))
    out = topk_np.topk_attention(x, x[:3], x[:3], k=2, is_causal=True, query_offset=-(10**30))
    assert (out == 0).all()


@pytest.mark.parametrize("name", ["topk_attention", "dense_attention"])
def test_signatures_show_each_of_the_options(name: str) -> None:
    for function in (getattr(topk_np, name), getattr(topk_np, f"{name}_fwd")):
        shown = inspect.signature(function).parameters
        assert AttentionOptions.__annotations__.keys() <= shown.keys()
        assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in shown.values())
