"""Short heads are taken together, with plans as they are; that changes no result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np.chunking
from tests import calls
from tests.backends import Backend
from tests.oracles import assert_all_close, assert_close, assert_same_bits
from tests.strategies import AttentionProblem, attention_QND


@pytest.fixture(scope="module", autouse=True, params=[2, 3, 512], ids="at-most-{}".format)
def packed_queries(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many queries a task may take, of all its heads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk_np.chunking, "PACKED_QUERIES", request.param)
        patch.setattr(topk_np.chunking, "SHORT_SCORES", 0)  # see test_short
        yield request.param


@st.composite
def many_heads(draw: st.DrawFn) -> AttentionProblem:
    """A problem that is not cut, so that only its heads can be taken apart or together."""
    return replace(draw(attention_QND()), chunk_size=None)


@given(problem=many_heads())
def test_heads_taken_together_give_dense_attention_over_the_selected_keys(
    xp: Backend, problem: AttentionProblem
) -> None:
    topk = calls.topk_attention(problem, xp)
    indices = xp.to_numpy(topk.residuals.indices)
    dense = calls.dense_attention(calls.restricted(problem, indices), xp)
    assert_close(topk.out, dense.out, size=problem.size)
    assert_all_close(topk.grads, dense.grads, size=problem.size)


@given(problem=many_heads())
def test_a_head_gives_the_same_alone_and_among_others(
    xp: Backend, problem: AttentionProblem
) -> None:
    """One query a chunk is never packed."""
    together = calls.topk_attention(problem, xp)
    apart = calls.topk_attention(problem, xp, chunk_size=1)
    assert_close(together.out, apart.out, size=problem.size)
    assert_all_close(together.grads, apart.grads, size=problem.size)


@given(problem=attention_QND(whole=True))
def test_heads_taken_together_select_the_same_keys(xp: Backend, problem: AttentionProblem) -> None:
    runs = [calls.topk_attention(problem, xp, chunk_size=size) for size in (None, 1)]
    together, apart = (xp.to_numpy(run.residuals.indices) for run in runs)
    assert_same_bits(together, apart)


def test_heads_taken_together_keep_their_own_keys_masks_and_positions(xp: Backend) -> None:
    """The first head sees the fewest keys, the second the most."""
    rng = np.random.default_rng(0)
    query, dout = rng.standard_normal((3, 2, 4)), rng.standard_normal((3, 2, 5))
    key, value = rng.standard_normal((3, 9, 4)), rng.standard_normal((3, 9, 5))
    mask = rng.random((3, 2, 9)) < 0.8
    offset = np.asarray([0, 7, 3])
    problem = AttentionProblem(
        query, key, value, dout, k=3, mask=mask, is_causal=True, query_offset=offset
    )
    together = calls.topk_attention(problem, xp)
    for head in range(3):
        alone = replace(
            problem,
            query=query[head],
            key=key[head],
            value=value[head],
            dout=dout[head],
            mask=mask[head],
            query_offset=int(offset[head]),
        )
        run = calls.topk_attention(alone, xp)
        assert_same_bits(
            xp.to_numpy(together.residuals.indices)[head], xp.to_numpy(run.residuals.indices)
        )
        assert_close(together.out[head], run.out, size=problem.size)
        for grad, expected in zip(together.grads[:3], run.grads[:3], strict=True):
            assert grad is not None
            assert expected is not None
            assert_close(grad[head], expected, size=problem.size)


def test_the_plan_takes_as_many_heads_as_it_may(packed_queries: int) -> None:
    sizes = topk_np.chunking.Sizes(heads=5, queries=1, keys=4, width=4, slots=2, itemsize=4)
    assert topk_np.chunking.plan_chunks(sizes).heads == min(5, packed_queries)
    assert topk_np.chunking.plan_chunks(sizes, chunk_size=1).heads == 1
