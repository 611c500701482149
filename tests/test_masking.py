"""Masks: who may attend to whom, and that nothing else gets through, finite or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np
from tests import calls
from tests.backends import Array, Backend
from tests.oracles import assert_all_close, assert_close, assert_same_bits
from tests.strategies import AttentionProblem, arrays_of, attention_QND, few_examples, masked, seeds
from topk_np.options.chunk import Chunk, Heads, Positions
from topk_np.options.masks import Mask

pytestmark = pytest.mark.usefixtures("tiny_plans")

each_attention = pytest.mark.parametrize(
    "attention", [calls.dense_attention, calls.topk_attention], ids=["dense", "topk"]
)
each_poison = pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
Attention = Callable[..., calls.Run]


def ordinary(seed: int = 0, queries: int = 5, keys: int = 7) -> AttentionProblem:
    """A problem of two heads without masks."""
    rng = np.random.default_rng(seed)
    query, key, value, dout = (
        rng.standard_normal((2, length, width))
        for length, width in ((queries, 3), (keys, 3), (keys, 4), (queries, 4))
    )
    return AttentionProblem(query, key, value, dout, k=3, chunk_size=2)


@each_attention
@given(data=st.data())
def test_causal_and_boolean_masks_combine_to_the_mask_of_both(
    xp: Backend, attention: Attention, data: st.DataObject
) -> None:
    problem = data.draw(masked(data.draw(attention_QND(masks=False))))
    alone = replace(problem, mask=problem.allowed, is_causal=False, query_offset=None, window=None)
    one, other = attention(problem, xp), attention(alone, xp)
    assert_close(one.out, other.out, size=problem.size)
    assert_all_close(one.grads, other.grads, size=problem.size)


@each_attention
@each_poison
@few_examples()
@given(seed=seeds)
def test_what_is_not_finite_in_masked_keys_and_values_goes_nowhere(
    xp: Backend, attention: Attention, poison: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    problem = ordinary(seed)
    hidden = rng.random(7) < 0.4
    clean = replace(problem, mask=(rng.random((5, 7)) < 0.7) & ~hidden)
    key, value = problem.key.copy(), problem.value.copy()
    key[:, hidden], value[:, hidden] = poison, poison
    run = attention(replace(clean, key=key, value=value), xp)
    expected = attention(clean, xp)
    assert_close(run.out, expected.out, size=problem.size)
    assert_all_close(run.grads, expected.grads, size=problem.size)
    _, dkey, dvalue, _ = run.grads
    assert (np.asarray(dkey)[:, hidden] == 0).all()
    assert (np.asarray(dvalue)[:, hidden] == 0).all()


@each_attention
@each_poison
@pytest.mark.parametrize("where", ["key", "value"])
def test_what_is_not_finite_in_a_key_reaches_only_the_queries_that_may_attend_to_it(
    xp: Backend, attention: Attention, poison: float, where: str
) -> None:
    problem = ordinary()
    mask = np.ones((5, 7), bool)
    mask[:3, 4] = False
    poisoned = getattr(problem, where).copy()
    poisoned[:, 4] = poison
    options = {where: poisoned}
    run = attention(replace(problem, mask=mask, k=7, **options), xp)
    expected = attention(replace(problem, mask=mask, k=7), xp)
    assert_close(run.out[:, :3], expected.out[:, :3], size=problem.size)
    dquery, clean_dquery = np.asarray(run.grads[0]), np.asarray(expected.grads[0])
    assert_close(dquery[:, :3], clean_dquery[:, :3], size=problem.size)
    if where == "value":
        assert not np.isfinite(run.out[:, 3:]).any()


@each_attention
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["query", "dout"])
def test_what_is_not_finite_in_a_query_reaches_only_the_keys_it_may_attend_to(
    xp: Backend, attention: Attention, poison: float, where: str
) -> None:
    problem = replace(ordinary(), k=7)
    mask = np.ones((5, 7), bool)
    mask[3, :4] = False
    # Positive keys: a query of inf has scores of +inf, none of -inf, which would be masked.
    problem = replace(problem, key=np.abs(problem.key), mask=mask)
    poisoned = getattr(problem, where).copy()
    poisoned[:, 3] = poison
    changed = {where: poisoned}
    run = attention(replace(problem, **changed), xp)
    # The first keys get what they would get without this query.
    others = np.delete(np.arange(5), 3)
    query, dout = problem.query[:, others], problem.dout[:, others]
    expected = attention(replace(problem, query=query, dout=dout, mask=mask[others]), xp)
    assert_close(run.out[:, others], expected.out, size=problem.size)
    for grad, clean in zip(run.grads[1:3], expected.grads[1:3], strict=True):
        assert grad is not None
        assert clean is not None
        assert_close(grad[:, :4], clean[:, :4], size=problem.size)
        assert not np.isfinite(grad[:, 4:]).any()


@each_attention
@each_poison
def test_a_fully_masked_query_gives_zero_whatever_it_and_the_keys_are(
    xp: Backend, attention: Attention, poison: float
) -> None:
    problem = ordinary()
    mask = np.ones((5, 7), bool)
    mask[[1, 4]] = False
    clean = replace(problem, mask=mask)
    query, dout = problem.query.copy(), problem.dout.copy()
    query[:, [1, 4]], dout[:, [1, 4]] = poison, poison
    run, expected = attention(replace(clean, query=query, dout=dout), xp), attention(clean, xp)
    assert (run.out[:, [1, 4]] == 0).all()
    assert (np.asarray(run.grads[0])[:, [1, 4]] == 0).all()
    assert_close(run.out, expected.out, size=problem.size)
    assert_all_close(run.grads, expected.grads, size=problem.size)


@each_attention
def test_where_everything_is_masked_all_is_zero(xp: Backend, attention: Attention) -> None:
    run = attention(replace(ordinary(), mask=np.zeros((5, 7), bool)), xp)
    assert (run.out == 0).all()
    for grad in run.grads[:3]:
        assert (np.asarray(grad) == 0).all()


def test_fewer_allowed_keys_than_k_are_all_selected_and_no_others(xp: Backend) -> None:
    mask = np.zeros((5, 7), bool)
    mask[np.arange(5), np.arange(5)] = True
    mask[0, 6] = True
    run = calls.topk_attention(replace(ordinary(), mask=mask, k=4), xp)
    indices = xp.to_numpy(run.residuals.indices)
    scores = xp.to_numpy(run.residuals.scores)
    for head in range(2):
        assert indices[head].tolist() == [[0, 6, -1, -1]] + [[i, -1, -1, -1] for i in range(1, 5)]
    assert ((scores == -np.inf) == (indices == -1)).all()


@each_attention
def test_a_score_of_minus_inf_counts_as_masked(xp: Backend, attention: Attention) -> None:
    problem = ordinary()
    query, key = np.abs(problem.query), problem.key.copy()
    key[:, 2] = -np.inf
    mask = np.ones((5, 7), bool)
    mask[:, 2] = False
    run = attention(replace(problem, query=query, key=key), xp)
    expected = attention(replace(problem, query=query, mask=mask), xp)
    assert_close(run.out, expected.out, size=problem.size)
    assert_all_close(run.grads, expected.grads, size=problem.size)


@each_attention
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_an_allowed_score_that_is_nan_or_plus_inf_makes_its_row_nan_and_no_other(
    xp: Backend, attention: Attention, poison: float, k: int
) -> None:
    problem = ordinary()
    query, key = np.abs(problem.query), np.abs(problem.key)
    query[:, 2] = poison
    options = {} if attention is calls.dense_attention else {"k": k}
    run = attention(replace(problem, query=query, key=key), xp, **options)
    others = [0, 1, 3, 4]
    for array in (run.out, np.asarray(run.grads[0])):
        assert np.isnan(array[:, 2]).all()
        assert np.isfinite(array[:, others]).all()


@each_attention
@given(problem=attention_QND(whole=True, masks=False), data=st.data())
def test_decoding_with_a_cache_gives_the_rows_of_the_full_causal_pass(
    xp: Backend, attention: Attention, problem: AttentionProblem, data: st.DataObject
) -> None:
    length = problem.keys
    query = data.draw(arrays_of((*problem.lead, length, problem.key.shape[-1]), whole=True))
    dout = np.ones((*problem.lead, length, problem.value.shape[-1]))
    full = replace(problem, query=query, dout=dout, is_causal=True)
    start = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(start + 1, length))
    part = replace(
        full,
        query=query[..., start:stop, :],
        key=problem.key[..., :stop, :],
        value=problem.value[..., :stop, :],
        dout=dout[..., start:stop, :],
        query_offset=start,
    )
    assert_close(
        attention(part, xp).out, attention(full, xp).out[..., start:stop, :], size=full.size
    )


@each_attention
def test_each_head_can_have_its_own_query_offset(xp: Backend, attention: Attention) -> None:
    problem = replace(ordinary(), is_causal=True)
    together = attention(replace(problem, query_offset=np.asarray([0, 2])), xp)
    for head, offset in enumerate((0, 2)):
        alone = attention(replace(problem, query_offset=offset), xp)
        assert_close(together.out[head], alone.out[head], size=problem.size)
        for grad, expected in zip(together.grads[:3], alone.grads[:3], strict=True):
            assert_close(np.asarray(grad)[head], np.asarray(expected)[head], size=problem.size)


@each_attention
def test_queries_before_the_first_key_see_nothing(xp: Backend, attention: Attention) -> None:
    run = attention(replace(ordinary(), is_causal=True, query_offset=-2), xp)
    assert (run.out[:, :2] == 0).all()
    assert (run.out[:, 2:] != 0).all()


def test_causal_attention_needs_the_offset_only_where_lengths_differ(xp: Backend) -> None:
    square = ordinary(queries=7)
    inputs, _, _ = square.on(xp)
    out = topk_np.topk_attention(*inputs, k=3, is_causal=True)
    same = topk_np.topk_attention(*inputs, k=3, is_causal=True, query_offset=0)
    assert_same_bits(xp.to_numpy(out), xp.to_numpy(same))
    first = topk_np.topk_attention(*inputs, k=3, is_causal=True, query_offset=np.int64(0))
    assert_same_bits(xp.to_numpy(out), xp.to_numpy(first))


@each_attention
def test_windows_far_from_all_keys_show_none_and_wide_ones_show_all(
    xp: Backend, attention: Attention
) -> None:
    problem = ordinary()
    for window, offset in (((0, None), 10**30), ((None, 0), -(10**30)), ((3, 3), 10**30)):
        run = attention(replace(problem, window=window, query_offset=offset), xp)
        assert (run.out == 0).all()
        assert all((np.asarray(grad) == 0).all() for grad in run.grads[:3])
    wide = attention(replace(problem, window=(10**30, 10**30), query_offset=0), xp)
    assert_same_bits(wide.out, attention(problem, xp).out)


def visible(mask: Mask, start: int, stop: int, keys: int, heads: int = 1) -> tuple[int, int]:
    """The range of keys that some queries, of one head or of several, may attend to."""
    seen = mask.visible(Chunk(Heads((0,), 0, heads), slice(start, stop)), slice(0, keys))
    return seen.start, seen.stop


def test_keys_outside_the_window_of_a_chunk_are_never_looked_at() -> None:
    mask = Mask(Positions(), left=2, right=1)
    assert visible(mask, 4, 6, keys=100) == (2, 7)
    assert visible(mask, 0, 2, keys=100) == (0, 3)
    assert visible(mask, 200, 202, keys=100) == (0, 0)


def test_chunks_of_padding_look_at_no_keys() -> None:
    for mask in (Mask(Positions(), query_lengths=3), Mask(Positions(), right=0, query_lengths=3)):
        assert visible(mask, 2, 4, keys=3) == (0, 3)
        assert visible(mask, 3, 5, keys=100) == (0, 0)
        assert visible(mask, 6, 8, keys=100) == (0, 0)


def test_a_stack_of_heads_sees_what_any_of_them_sees() -> None:
    offsets, lengths = np.array([2, 30, 10]), np.array([9, 100, 40])
    mask = Mask(Positions(offsets), left=1, right=1, key_lengths=lengths)
    assert visible(mask, 0, 2, keys=100) == (1, 5)
    assert visible(mask, 0, 2, keys=100, heads=2) == (1, 33)
    assert visible(mask, 0, 2, keys=20, heads=2) == (1, 20)
    padded = replace(mask, query_lengths=np.array([0, 2, 0]))
    assert visible(padded, 0, 2, keys=100, heads=3) == (29, 33)


def test_a_chunk_sees_its_window_of_keys_from_any_first_key_on() -> None:
    """Chunks look at the keys from 8 on, where the window of the first query begins."""
    x, value = np.ones((3, 1)), np.arange(14.0)[:, None]
    key = np.ones((14, 1))
    out = topk_np.topk_attention(
        x, key, value, k=14, chunk_size=2, query_offset=10, window=(2, 1), is_causal=True
    )
    np.testing.assert_allclose(out[:, 0], [9, 10, 11])


@each_attention
def test_each_chunk_asks_a_mask_function_for_its_own_pairs(
    xp: Backend, attention: Attention
) -> None:
    asked = set()

    def near(query: Array, key: Array) -> Array:
        asked.add(tuple(xp.to_numpy(query).ravel().tolist()))
        return (query - key) ** 2 <= 1

    attention(replace(ordinary(), mask=near, query_offset=4), xp, workers=1)
    assert asked == {(4, 5), (6, 7), (8,)}
