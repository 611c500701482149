"""Short heads that are taken together, in products of stacks, give what they give otherwise."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np
import topk_np.chunking
from tests import calls
from tests.oracles import assert_all_close, assert_close, assert_rounded_once, assert_same_bits
from tests.strategies import AttentionProblem, attention_QND
from topk_np import core, short


@pytest.fixture(scope="module", autouse=True, params=[20, 2**16], ids="at-most-{}".format)
def packed_scores(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many scores the heads have that are taken together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk_np.chunking, "PACKED_SCORES", request.param)
        yield request.param


def normal(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def batch(dtype: type = np.float64, **options: Any) -> AttentionProblem:
    """Self-attention of two sequences of 12 tokens, in three heads."""
    query, key, value, dout = (normal(2, 3, 12, 4, seed=i, dtype=dtype) for i in range(4))
    return AttentionProblem(query, key, value, dout, k=5, **options)


@st.composite
def short_problems(draw: st.DrawFn) -> AttentionProblem:
    """Masks that go by position and by length, of heads that share keys or do not."""
    problem = draw(attention_QND())
    per_head = st.integers(0, 2**20).map(
        lambda seed: np.random.default_rng(seed).integers(0, problem.keys + 1, problem.lead)
    )
    offset = problem.query_offset
    return replace(
        problem,
        chunk_size=None,
        mask=None,
        query_offset=offset if isinstance(offset, int) else problem.keys - problem.queries,
        query_lengths=draw(st.none() | st.integers(0, problem.queries)),
        key_lengths=draw(st.none() | (per_head if problem.lead else st.just(1))),
    )


def general(problem: AttentionProblem, **more: Any) -> calls.Run:
    """The same with every head on its own: a chunk size asks for it."""
    run = calls.topk_attention(problem, chunk_size=problem.queries, **more)
    assert not run.residuals.chunks.short
    return run


@given(problem=short_problems())
def test_heads_together_keep_what_heads_keep_one_by_one(problem: AttentionProblem) -> None:
    together, apart = calls.topk_attention(problem), general(problem)
    assert together.residuals.chunks.short
    if np.all(problem.query == np.round(problem.query)):  # products are exact
        assert_same_bits(together.residuals.indices, apart.residuals.indices)
    if (together.residuals.indices == apart.residuals.indices).all():
        assert_close(together.residuals.scores, apart.residuals.scores, size=problem.size)
        assert_close(together.out, apart.out, size=problem.size)
        assert_all_close(together.grads, apart.grads, size=problem.size)


@given(problem=short_problems())
def test_the_log_sum_exp_and_its_gradient_are_those_of_heads_one_by_one(
    problem: AttentionProblem,
) -> None:
    douts = problem.dout, np.cos(problem.dout[..., 0])

    def run(chunk_size: int | None) -> tuple[Any, ...]:
        options = {**problem.options, "chunk_size": chunk_size, "return_lse": True}
        out, residuals = topk_np.topk_attention_fwd(*problem.arrays, **options)
        return out, topk_np.topk_attention_bwd(residuals, douts), residuals.indices

    (out, lse), grads, indices = run(None)
    (other_out, other_lse), other_grads, others = run(problem.queries)
    if (indices == others).all():
        assert_close(out, other_out, size=problem.size)
        assert_close(lse, other_lse, size=problem.size)
        assert_all_close(grads, other_grads, size=problem.size)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["query", "key", "value", "dout"])
def test_what_is_not_finite_is_left_to_the_general_way(
    name: str, poison: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = batch()
    array = getattr(problem, name).copy()
    array[1, 2, 7, 0] = poison
    problem = replace(problem, **{name: array})
    wanted, called = general(problem), []
    for function in ("forward", "backward"):
        original = getattr(core, function)

        def noted(*arguments: Any, name: str = function, original: Any = original) -> Any:
            called.append(name)
            return original(*arguments)

        monkeypatch.setattr(core, function, noted)
    run = calls.topk_attention(problem)
    assert run.residuals.chunks.short
    assert called == (["backward"] if name == "dout" else ["forward", "backward"])
    assert_same_bits(run.residuals.indices, wanted.residuals.indices)
    assert_close(run.out, wanted.out, size=100.0)
    assert_all_close(run.grads, wanted.grads, size=1000.0)


def test_a_key_that_is_hidden_from_all_may_hold_anything() -> None:
    problem = batch(key_lengths=np.array([[12], [9]]))
    clean = calls.topk_attention(problem)
    for name in ("key", "value"):
        array = getattr(problem, name).copy()
        array[1, :, 9:, :] = np.nan
        run = calls.topk_attention(replace(problem, **{name: array}))
        assert_same_bits(run.residuals.indices, clean.residuals.indices)
        assert_close(run.out, clean.out, size=10.0)
        assert_all_close(run.grads, clean.grads, size=100.0)


def test_rows_of_equal_scores_keep_their_first_keys() -> None:
    problem = replace(batch(is_causal=True), query=np.zeros((2, 3, 12, 4)))
    indices = calls.topk_attention(problem).residuals.indices
    for row in range(12):
        kept = min(5, row + 1)
        assert (indices[..., row, :] == [*range(kept), *[-1] * (5 - kept)]).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_any_size_have_their_softmax(size: float, dtype: type) -> None:
    """With and without the largest of a row taken off before exp."""
    problem = batch(dtype)
    problem = replace(problem, query=problem.query * dtype(size))
    run, wanted = calls.topk_attention(problem), general(problem)
    assert_close(run.out, wanted.out, size=10 * max(1.0, size))
    assert_all_close(run.grads, wanted.grads, size=100 * max(1.0, size) ** 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_values_are_averaged_where_all_scores_are_low(dtype: type) -> None:
    """A row's weights before their division are then smaller than what a product can hold."""
    ones: list[np.ndarray] = [np.ones((2, rows, 1)).astype(dtype) for rows in (1, 2, 2)]
    query, key, value = -39 * ones[0], ones[1], 1e3 * float(np.finfo(dtype).tiny) * ones[2]
    out, residuals = topk_np.topk_attention_fwd(query, key, value, k=1)
    assert residuals.chunks.short
    np.testing.assert_allclose(out, value[:, :1], rtol=1e-5)


def test_a_masked_row_of_nan_has_no_mass_where_values_have_no_width() -> None:
    query, key = np.full((1, 1, 1), np.nan), np.ones((1, 2, 1))
    options: dict[str, Any] = {"is_causal": True, "query_offset": -1, "return_lse": True}
    _, lse = topk_np.topk_attention(query, key, np.ones((1, 2, 0)), k=1, **options)
    assert lse.tolist() == [[-np.inf]]


def test_half_precision_is_computed_in_single() -> None:
    narrow = batch().astype(np.float16)
    run, wanted = calls.topk_attention(narrow), calls.topk_attention(narrow.astype(np.float32))
    assert run.residuals.chunks.short
    assert run.residuals.scores.dtype == np.float32
    for result, unrounded in zip(
        (run.out, *run.grads[:3]), (wanted.out, *wanted.grads[:3]), strict=True
    ):
        assert result is not None
        assert unrounded is not None
        assert result.dtype == np.float16
        assert_rounded_once(result, unrounded)


@pytest.mark.parametrize("shared", [(2, 1), (1, 3), (1,), ()], ids=str)
def test_workers_change_no_bit_where_heads_share_keys(
    shared: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("topk_np.problem.WORTH_THREADS", 0)
    problem = batch(np.float32)
    key, value = normal(*shared, 12, 4, seed=8), normal(*shared, 12, 4, seed=9)
    problem = replace(problem, key=key, value=value)
    one = calls.topk_attention(problem, workers=1)
    for workers in (2, 8):
        run = calls.topk_attention(problem, workers=workers)
        assert_same_bits(run.out, one.out)
        for grad, other in zip(run.grads, one.grads, strict=True):
            assert_same_bits(grad, other)


def test_strided_inputs_give_what_plain_ones_give() -> None:
    """As they come from heads that were split from rows, and with gaps between the numbers."""
    problem = batch()
    moved = [np.moveaxis(np.moveaxis(a, 1, 2).copy(), 2, 1) for a in problem.arrays]
    gaps = [np.repeat(a, 2, axis=-1)[..., ::2] for a in problem.arrays]
    expected = calls.topk_attention(problem)
    for query, key, value in (moved, gaps):
        assert not query.flags.c_contiguous
        run = calls.topk_attention(replace(problem, query=query, key=key, value=value))
        assert_close(run.out, expected.out, size=10.0)
        assert_all_close(run.grads, expected.grads, size=100.0)


@pytest.mark.parametrize(
    ("shared", "dtype"), [(False, np.float32), (True, np.float32), (False, np.float16)]
)
def test_many_short_heads_stay_within_the_budget(shared: bool, dtype: type) -> None:
    query = normal(2048, 16, 8, dtype=dtype)
    key = query[:1] if shared else query
    budget = 2**20
    topk_np.topk_attention(
        query[:2], query[:2], query[:2], k=4
    )  # loads what is loaded on first use
    tracemalloc.start()
    try:
        out, residuals = topk_np.topk_attention_fwd(query, key, key, k=4, memory_budget=budget)
        forward = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        grads = topk_np.topk_attention_bwd(residuals, out)
        backward = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert residuals.chunks.short
    held = out.nbytes + residuals.nbytes
    assert forward <= 1.15 * held + budget
    assert backward <= 1.15 * (held + sum(grad.nbytes for grad in grads[:3])) + budget


def test_long_heads_options_that_go_by_head_and_other_engines_go_the_general_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = batch()

    def is_short(problem: AttentionProblem, **more: Any) -> bool:
        return bool(calls.topk_attention(problem, **more).residuals.chunks.short)

    assert is_short(problem)
    assert not is_short(problem, chunk_size=4)
    assert not is_short(problem, softcap=2.0)
    assert not is_short(problem, always_keep=(1, 0))
    assert not is_short(problem, mask=np.ones((12, 12), bool))
    key = normal(2, 3, topk_np.chunking.SHORT_KEYS + 1, 4, dtype=np.float64)
    assert not is_short(replace(problem, key=key, value=key))
    monkeypatch.setenv("TOPK_NP_KERNELS", "portable")
    assert not is_short(problem)
    monkeypatch.setattr(short, "forward", None)  # is not called any more
    calls.topk_attention(problem)
