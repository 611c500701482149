"""Heads of any length, shared or not, in stacks or alone, give the results of the oracle."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import topk_np
from tests import calls
from tests.backends import NUMPY, Backend
from tests.oracles import (
    assert_all_close,
    assert_close,
    assert_rounded_once,
    assert_same_bits,
    sum_to_shape,
)
from tests.strategies import AttentionProblem, attention_QND, attention_with_options
from tests.test_memory import warm_up
from topk_np.kernels import tuning

STACKS = {
    "alone": {"stack_queries": 1, "stack_scores": 1},
    "few": {"stack_queries": 3, "stack_scores": 20},
    "as they are": {},
    "never short": {"short_keys": 0},
}
ATTENTIONS = {"topk": calls.topk_attention, "dense": calls.dense_attention}
each_attention = pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)


@pytest.fixture(scope="module", autouse=True, params=STACKS)
def stacks(request: pytest.FixtureRequest) -> Iterator[str]:
    """How many heads a stack may have, and whether rows are short enough to be written out."""
    with pytest.MonkeyPatch.context() as patch:
        limits: dict[str, Any] = STACKS[request.param]
        patch.setattr(tuning, "current", replace(tuning.current, **limits))
        yield request.param


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def batch(dtype: Any = np.float64, **options: Any) -> AttentionProblem:
    """Self-attention of two sequences of 12 tokens, in three heads."""
    query, key, value, dout = (normal(2, 3, 12, 4, seed=i, dtype=dtype) for i in range(4))
    return AttentionProblem(query, key, value, dout, k=5, **options)


def one_by_one(attention: Any, problem: AttentionProblem, xp: Backend = NUMPY) -> calls.Run:
    """The same with every head on its own: a chunk size asks for it."""
    run: calls.Run = attention(problem, xp, chunk_size=max(problem.queries, 1))
    assert run.residuals.schedule.heads == 1
    return run


@each_attention
def test_heads_are_taken_together_where_they_are_short_and_nothing_cuts_them(
    attention: Any, stacks: str
) -> None:
    query, key, value, dout = (normal(7, 2, 2, seed=i) for i in range(4))
    problem = AttentionProblem(query, key, value, dout, k=1)
    heads = {"alone": 1, "few": 5, "as they are": 7, "never short": 7}[stacks]
    assert attention(problem).residuals.schedule.heads == heads
    assert attention(problem, chunk_size=2).residuals.schedule.heads == 1


@given(problem=attention_with_options(), cut=st.booleans())
def test_topk_is_dense_attention_over_the_selected_keys(
    xp: Backend, problem: AttentionProblem, cut: bool
) -> None:
    problem = problem if cut else replace(problem, chunk_size=None)
    topk = calls.topk_attention(problem, xp)
    indices = xp.to_numpy(topk.residuals.indices)
    pairs = calls.selected_pairs(indices, problem.keys)
    only = replace(problem, mask=pairs, is_causal=False, window=None, query_lengths=None)
    dense = one_by_one(calls.dense_attention, replace(only, key_lengths=None), xp)
    assert_close(topk.out, dense.out, size=10 * problem.size)
    assert_all_close(topk.grads, dense.grads, size=10 * problem.size)


@each_attention
@given(problem=attention_with_options(whole=True))
def test_heads_give_together_what_they_give_one_by_one(
    xp: Backend, attention: Any, problem: AttentionProblem
) -> None:
    together = attention(replace(problem, chunk_size=None), xp)
    apart = one_by_one(attention, problem, xp)
    if attention is calls.topk_attention:
        one, other = (xp.to_numpy(run.residuals.indices) for run in (together, apart))
        exact = (
            problem.p is None and problem.softcap is None
        )  # of whole numbers, whose products are
        assume(exact or np.array_equal(one, other))
        assert_same_bits(one, other)
    assert_close(together.out, apart.out, size=10 * problem.size)
    assert_all_close(together.grads, apart.grads, size=10 * problem.size)


@given(problem=attention_QND(whole=True))
def test_the_log_sum_exp_and_its_gradient_are_those_of_heads_one_by_one(
    xp: Backend, problem: AttentionProblem
) -> None:
    douts = xp.arrays(problem.dout, np.cos(problem.dout[..., 0]))
    inputs, options, _ = problem.on(xp)

    def run(chunk_size: int | None) -> list[np.ndarray]:
        given = {**options, "chunk_size": chunk_size, "return_lse": True}
        out, residuals = topk_np.topk_attention_fwd(*inputs, **given)
        grads = topk_np.topk_attention_bwd(residuals, douts)
        return [xp.to_numpy(array) for array in (*out, *grads[:3])]

    assert_all_close(run(None), run(problem.queries), size=10 * problem.size)


@pytest.mark.parametrize("length", [1, 16, 128, 512, 513, 1024])
@pytest.mark.parametrize(
    ("lead", "hidden"),
    [
        ((), "nothing"),
        ((2,), "causal"),
        ((1, 3), "padding"),
        ((2, 1), "mask"),
        ((2, 3), "window"),
        ((2, 3), "padding"),
    ],
    ids=str,
)
def test_heads_of_any_length_give_the_textbooks_results(
    length: int, lead: tuple[int, ...], hidden: str
) -> None:
    queries, full = min(length, 96), (2, 3)[: len(lead)] or (2,)
    rng = np.random.default_rng(length)
    options: dict[str, dict[str, Any]] = {
        "nothing": {},
        "causal": {"is_causal": True, "query_offset": length - queries},
        "padding": {"key_lengths": rng.integers(0, length + 1, full)},
        "mask": {"mask": rng.random((queries, length)) < 0.7},
        "window": {"window": (length // 3, 5), "query_offset": 1},
    }
    problem = AttentionProblem(
        normal(*full, queries, 8),
        normal(*lead, length, 8, seed=1),
        normal(*lead, length, 5, seed=2),
        normal(*full, queries, 5, seed=3),
        k=min(16, length),
        **options[hidden],
    )
    run = calls.topk_attention(problem)
    out, grads = textbook(problem)
    assert_close(run.out, out, size=100.0)
    assert_all_close(run.grads[:3], grads, size=1000.0)


def textbook(problem: AttentionProblem) -> tuple[np.ndarray, list[np.ndarray]]:
    """Output and gradients of top-k attention, from whole matrices."""
    query, key, value = (
        np.broadcast_to(array, (*problem.lead, *array.shape[-2:])) for array in problem.arrays
    )
    scale, scores = problem.true_scale, problem.scores  # (..., Q, N)
    best = np.argsort(-scores, axis=-1, kind="stable")[..., : problem.k]
    kept = np.full_like(scores, -np.inf)
    np.put_along_axis(kept, best, np.take_along_axis(scores, best, axis=-1), axis=-1)
    largest = kept.max(axis=-1, keepdims=True)
    weights = np.exp(kept - np.where(largest == -np.inf, 0, largest))
    total = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(total == 0, 1, total)
    dweights = problem.dout @ value.mT
    dscores = weights * (dweights - np.sum(weights * dweights, axis=-1, keepdims=True))
    full = scale * dscores @ key, scale * dscores.mT @ query, weights.mT @ problem.dout
    grads = [sum_to_shape(g, a.shape) for g, a in zip(full, problem.arrays, strict=True)]
    return weights @ value, grads


@each_attention
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["query", "key", "value", "dout"])
def test_what_is_not_finite_does_in_a_stack_what_it_does_alone(
    xp: Backend, attention: Any, name: str, poison: float
) -> None:
    problem = batch(is_causal=True)
    array = getattr(problem, name).copy()
    array[1, 2, 7, 0] = poison
    problem = replace(problem, **{name: array})
    run, wanted = attention(problem, xp), one_by_one(attention, problem, xp)
    assert_close(run.out, wanted.out, size=100.0)
    assert_all_close(run.grads, wanted.grads, size=1000.0)
    others = np.ones((2, 3), bool)
    others[1, 2] = False
    for result in (run.out, *run.grads[:3]):
        assert np.isfinite(np.asarray(result)[others]).all()


@each_attention
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("shared", [False, True])
def test_a_key_that_is_hidden_from_all_may_hold_anything(
    xp: Backend, attention: Any, poison: float, shared: bool
) -> None:
    problem = batch(key_lengths=np.array([[9], [9]]) if shared else np.array([[12], [9]]))
    if shared:
        problem = replace(problem, key=problem.key[:, :1], value=problem.value[:1])
    clean = attention(problem, xp)
    for name in ("key", "value"):
        array = getattr(problem, name).copy()
        array[-1, :, 9:, :] = poison
        run = attention(replace(problem, **{name: array}), xp)
        assert_close(run.out, clean.out, size=10.0)
        assert_all_close(run.grads, clean.grads, size=100.0)


def test_rows_of_equal_scores_keep_their_first_keys(xp: Backend) -> None:
    problem = replace(batch(is_causal=True), query=np.zeros((2, 3, 12, 4)))
    indices = xp.to_numpy(calls.topk_attention(problem, xp).residuals.indices)
    for row in range(12):
        kept = min(5, row + 1)
        assert (indices[..., row, :] == [*range(kept), *[-1] * (5 - kept)]).all()


def test_heads_keep_their_own_keys_masks_and_positions(xp: Backend) -> None:
    """The first head sees the fewest keys, the second the most."""
    mask = np.random.default_rng(0).random((3, 2, 9)) < 0.8
    query, dout = (normal(3, 2, 4, seed=i) for i in range(2))
    key, value = (normal(3, 9, 4, seed=2 + i) for i in range(2))
    offset = np.asarray([0, 7, 3])
    problem = AttentionProblem(
        query, key, value, dout, k=3, mask=mask, is_causal=True, query_offset=offset
    )
    together = calls.topk_attention(problem, xp)
    for head in range(3):
        names = ("query", "key", "value", "dout", "mask")
        own = {name: getattr(problem, name)[head] for name in names}
        run = calls.topk_attention(replace(problem, query_offset=int(offset[head]), **own), xp)
        indices = (xp.to_numpy(each.residuals.indices) for each in (together, run))
        assert_same_bits(next(indices)[head], next(indices))
        assert_close(together.out[head], run.out, size=problem.size)
        for grad, expected in zip(together.grads[:3], run.grads[:3], strict=True):
            assert_close(np.asarray(grad)[head], np.asarray(expected), size=problem.size)


@each_attention
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_any_size_have_their_softmax(attention: Any, size: float, dtype: Any) -> None:
    problem = batch(dtype)
    problem = replace(problem, query=problem.query * dtype(size))
    run, wanted = attention(problem), one_by_one(attention, problem)
    assert_close(run.out, wanted.out, size=10 * max(1.0, size))
    assert_all_close(run.grads, wanted.grads, size=100 * max(1.0, size) ** 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_values_are_averaged_where_all_scores_are_low(dtype: Any) -> None:
    """A row's weights before their division are then smaller than what a product can hold."""
    ones: list[np.ndarray] = [np.ones((2, rows, 1)).astype(dtype) for rows in (1, 2, 2)]
    query, key, value = -39 * ones[0], ones[1], 1e3 * float(np.finfo(dtype).tiny) * ones[2]
    out = topk_np.topk_attention(query, key, value, k=1)
    np.testing.assert_allclose(out, value[:, :1], rtol=1e-5)


def test_a_masked_row_of_nan_has_no_mass_where_values_have_no_width(xp: Backend) -> None:
    arrays = xp.arrays(np.full((1, 1, 1), np.nan), np.ones((1, 2, 1)), np.ones((1, 2, 0)))
    options: dict[str, Any] = {"is_causal": True, "query_offset": -1, "return_lse": True}
    _, lse = topk_np.topk_attention(*arrays, k=1, **options)
    assert xp.to_numpy(lse).tolist() == [[-np.inf]]


@each_attention
def test_half_precision_is_computed_in_single_and_rounded_once(attention: Any) -> None:
    narrow = batch().astype(np.float16)
    run, wanted = attention(narrow), attention(narrow.astype(np.float32))
    for result, unrounded in zip(
        (run.out, *run.grads[:3]), (wanted.out, *wanted.grads[:3]), strict=True
    ):
        assert np.asarray(result).dtype == np.float16
        assert_rounded_once(np.asarray(result), np.asarray(unrounded))


@each_attention
@pytest.mark.parametrize("shared", [(4, 6), (4, 1), (1, 6), (1,), ()], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("length", [3, 12, 600])
def test_workers_change_no_bit_whether_heads_share_keys_or_not(
    monkeypatch: pytest.MonkeyPatch,
    attention: Any,
    shared: tuple[int, ...],
    dtype: Any,
    length: int,
) -> None:
    """Where there are so many heads that each thread has stacks of its own."""
    monkeypatch.setattr(tuning, "current", replace(tuning.current, worth_threads=0, least_range=9))
    query, dout = (normal(4, 6, 12, 4, seed=i, dtype=dtype) for i in range(2))
    key, value = (normal(*shared, length, 4, seed=8 + i, dtype=dtype) for i in range(2))
    problem = AttentionProblem(
        query, key, value, dout, k=5, is_causal=True, query_offset=length - 5
    )
    one = attention(problem, workers=1)
    for workers in (2, 8):
        run = attention(problem, workers=workers)
        assert_same_bits(run.out, one.out)
        for grad, other in zip(run.grads, one.grads, strict=True):
            assert_same_bits(grad, other)


@each_attention
def test_strided_inputs_give_what_plain_ones_give(attention: Any) -> None:
    """As they come from heads that were split from rows, and with gaps between the numbers."""
    problem = batch()
    moved = [np.moveaxis(np.moveaxis(a, 1, 2).copy(), 2, 1) for a in problem.arrays]
    gaps = [np.repeat(a, 2, axis=-1)[..., ::2] for a in problem.arrays]
    expected = attention(problem)
    for query, key, value in (moved, gaps):
        assert not query.flags.c_contiguous
        run = attention(replace(problem, query=query, key=key, value=value))
        assert_close(run.out, expected.out, size=10.0)
        assert_all_close(run.grads, expected.grads, size=100.0)


@pytest.mark.parametrize("equal", [False, True], ids=["random", "all-equal"])
@pytest.mark.parametrize(
    ("shared", "dtype"), [(False, np.float32), (True, np.float32), (False, np.float16)]
)
def test_many_short_heads_stay_within_the_budget(
    monkeypatch: pytest.MonkeyPatch, stacks: str, shared: bool, dtype: Any, equal: bool
) -> None:
    """Taken together as they are: what Python's objects take for each of many chunks is much."""
    if stacks in ("alone", "few"):
        monkeypatch.setattr(tuning, "current", tuning.Tuning())
    query = normal(2048, 16, 8, dtype=dtype) * dtype(not equal)
    key = query[:1] if shared else query
    budget = 2**20
    warm_up()
    tracemalloc.start()
    try:
        out, residuals = topk_np.topk_attention_fwd(query, key, key, k=4, memory_budget=budget)
        forward = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        grads = topk_np.topk_attention_bwd(residuals, out)
        backward = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    held = out.nbytes + residuals.nbytes
    assert forward <= 1.15 * held + budget
    assert backward <= 1.15 * (held + sum(grad.nbytes for grad in grads[:3])) + budget
