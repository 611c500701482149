"""Any layout, dtype, device or length of arrays works; inputs are only read, results are fresh."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import topk_np
from tests import calls
from tests.backends import NUMPY, Array, Backend
from tests.oracles import (
    assert_all_close,
    assert_close,
    assert_rounded_once,
    assert_same_bits,
    sum_to_shape,
)
from tests.strategies import AttentionProblem, FFNProblem, attention_QND, ffn_FD

Problem = AttentionProblem | FFNProblem
CALLS: dict[str, Callable[..., calls.Run]] = {
    "topk_attention": calls.topk_attention,
    "dense_attention": calls.dense_attention,
    "topk_ffn": calls.topk_ffn,
    "dense_ffn": calls.dense_ffn,
}
each_call = pytest.mark.parametrize("name", CALLS)


def problem_for(name: str, seed: int = 0) -> Problem:
    """A problem with every optional array, for attention or the feed-forward layer."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal
    if name.endswith("attention"):
        return AttentionProblem(
            normal((2, 5, 4)),
            normal((2, 6, 4)),
            normal((2, 6, 3)),
            normal((2, 5, 3)),
            k=3,
            mask=rng.random((5, 6)) < 0.8,
            chunk_size=2,
        )
    return FFNProblem(
        normal((2, 5, 4)),
        normal((6, 4)),
        normal((6, 3)),
        normal((2, 5, 3)),
        k=3,
        activation="silu",
        key_bias=normal(6),
        value_bias=normal(3),
        gate=normal((6, 4)),
        chunk_size=2,
    )


def arrays_in(problem: Problem) -> dict[str, np.ndarray]:
    """The problem's arrays by name."""
    return {name: value for name, value in vars(problem).items() if isinstance(value, np.ndarray)}


def assert_same_run(run: calls.Run, expected: calls.Run, size: float) -> None:
    assert_close(run.out, expected.out, size=size)
    assert_all_close(run.grads, expected.grads, size=size)


def reversed_strides(array: np.ndarray) -> np.ndarray:
    return array[::-1].copy()[::-1]


def every_other(array: np.ndarray) -> np.ndarray:
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), 7, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def unaligned(array: np.ndarray) -> np.ndarray:
    bytes_off = np.zeros(array.nbytes + 1, np.uint8)
    shifted = bytes_off[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


@each_call
@pytest.mark.parametrize(
    "layout",
    [np.asfortranarray, reversed_strides, every_other, unaligned],
    ids=lambda f: f.__name__,
)
def test_memory_layout_does_not_matter(
    name: str, layout: Callable[[np.ndarray], np.ndarray]
) -> None:
    problem = problem_for(name)
    arrays: dict[str, Any] = {n: layout(a) for n, a in arrays_in(problem).items()}
    laid_out = replace(problem, **arrays)
    assert_same_run(CALLS[name](laid_out), CALLS[name](problem), problem.size)


@given(problem=attention_QND())
def test_broadcast_views_work_like_copies(xp: Backend, problem: AttentionProblem) -> None:
    def widened(array: np.ndarray) -> np.ndarray:
        return np.broadcast_to(array, (*problem.lead, *array.shape[-2:]))

    views = replace(
        problem,
        query=widened(problem.query),
        key=widened(problem.key),
        value=widened(problem.value),
        dout=np.broadcast_to(problem.dout[..., :1, :1], problem.dout.shape),
    )
    dout = views.dout.copy()
    for call in (calls.topk_attention, calls.dense_attention):
        run, expected = call(views, xp), call(replace(problem, dout=dout), xp)
        assert_close(run.out, expected.out, size=problem.size)
        for grad, whole, narrow in zip(
            run.grads[:3], views.arrays, expected.grads[:3], strict=True
        ):
            assert grad is not None
            assert narrow is not None
            assert grad.shape == whole.shape
            assert_close(sum_to_shape(grad, narrow.shape), narrow, size=problem.size)


@each_call
def test_inputs_are_not_written_to_and_results_do_not_alias_them(name: str) -> None:
    problem = problem_for(name)
    # The NumPy arrays handed over are read-only views: a write raises.
    before = {n: a.copy() for n, a in arrays_in(problem).items()}
    run = CALLS[name](problem)
    for n, array in arrays_in(problem).items():
        assert_same_bits(array, before[n])
    results = [run.out, *(grad for grad in run.grads if grad is not None)]
    for result, array in itertools.product(results, arrays_in(problem).values()):
        assert not np.shares_memory(result, array)
    for result, other in itertools.combinations(results, 2):
        assert not np.shares_memory(result, other)
    for result in results:
        assert result.flags.writeable


@each_call
def test_k_one_and_identity_still_give_fresh_results(name: str) -> None:
    """Cases in which a result equals an input, so that handing it out would be tempting."""
    one = np.ones((1, 1))
    for activation in ("identity", "relu"):
        problem: Problem = AttentionProblem(one, one, one, one, k=1)
        if name.endswith("ffn"):
            problem = FFNProblem(one, one, one, one, k=1, activation=activation)
        run = CALLS[name](problem)
        for result in (run.out, *run.grads):
            assert result is None or not np.shares_memory(result, one)


@each_call
def test_results_have_the_inputs_dtype_library_and_device(xp: Backend, name: str) -> None:
    functions = (getattr(topk_np, f"{name}_fwd"), getattr(topk_np, f"{name}_bwd"))
    for dtype in xp.dtypes:
        problem = problem_for(name).astype(dtype)
        dense = name.startswith("dense")
        inputs, options, dout = problem.dense_on(xp) if dense else problem.on(xp)
        out, residuals = functions[0](*inputs, **options)
        grads = functions[1](residuals, dout)
        plain_out = getattr(topk_np, name)(*inputs, **options)
        for result in (out, plain_out, *grads):
            if result is not None:
                assert isinstance(result, type(inputs[0]))
                assert result.dtype == inputs[0].dtype
                assert result.device == xp.device
        assert_same_bits(xp.to_numpy(plain_out), xp.to_numpy(out))
        for grad, array in zip(grads, [*inputs, *optional_on(xp, problem)], strict=False):
            assert (grad is None) == (array is None)
            assert grad is None or grad.shape == array.shape


def optional_on(xp: Backend, problem: Problem) -> Iterator[Array]:
    """The optional arrays that have gradients, in the order of the gradients."""
    if isinstance(problem, FFNProblem):
        yield from xp.arrays(*problem.optional.values())


@each_call
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_the_float32_result_rounded_once(name: str, dtype: str) -> None:
    """Long sums, which would lose most of their digits if added up in half precision."""
    half = np.dtype(getattr(ml_dtypes, dtype, dtype))
    problem = long_problem(name).astype(half)
    run, expected = CALLS[name](problem), CALLS[name](problem.astype("float32"))
    for result, single in zip((run.out, *run.grads), (expected.out, *expected.grads), strict=True):
        if result is None or single is None:
            assert result is None
            assert single is None
            continue
        assert result.dtype == half
        assert_rounded_once(result, single)


def long_problem(name: str) -> Problem:
    """Many keys and queries, so that every sum is long, all selected."""
    rng = np.random.default_rng(5)

    def near_one(*shape: int) -> Any:
        return 0.5 + 0.5 * rng.random(shape)

    if name.endswith("attention"):
        arrays = near_one(400, 3), near_one(300, 3), near_one(300, 2), near_one(400, 2)
        return AttentionProblem(*arrays, k=300, chunk_size=7)
    arrays = near_one(400, 3), near_one(300, 3), near_one(300, 2), near_one(400, 2)
    return FFNProblem(*arrays, k=300, activation="gelu", value_bias=near_one(2), chunk_size=7)


@pytest.mark.parametrize("lead", [(), (2,), (0,), (2, 0)])
@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (3, 0), (0, 0), (3, 2)])
@pytest.mark.parametrize(("width", "value_width"), [(2, 2), (0, 2), (2, 0)])
def test_attention_of_zero_length_is_empty_or_zero(
    xp: Backend,
    lead: tuple[int, ...],
    queries: int,
    keys: int,
    width: int,
    value_width: int,
) -> None:
    rng = np.random.default_rng(0)
    problem = AttentionProblem(
        rng.standard_normal((*lead, queries, width)),
        rng.standard_normal((*lead, keys, width)),
        rng.standard_normal((*lead, keys, value_width)),
        rng.standard_normal((*lead, queries, value_width)),
        k=2,
        is_causal=True,
        query_offset=1,
    )
    for call in (calls.topk_attention, calls.dense_attention):
        run = call(problem, xp)
        assert run.out.shape == (*lead, queries, value_width)
        for grad, array in zip(run.grads[:3], problem.arrays, strict=True):
            assert grad is not None
            assert grad.shape == array.shape
            assert np.isfinite(grad).all()
            assert keys * queries > 0 or (grad == 0).all()
        assert keys > 0 or (run.out == 0).all()


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (3,), ()])
@pytest.mark.parametrize("units", [0, 3])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("select", ["score", "activation"])
def test_ffn_of_zero_length_is_empty_or_the_bias(
    xp: Backend, shape: tuple[int, ...], units: int, gated: bool, select: str
) -> None:
    rng = np.random.default_rng(0)
    problem = FFNProblem(
        rng.standard_normal((*shape, 2)),
        rng.standard_normal((units, 2)),
        rng.standard_normal((units, 4)),
        rng.standard_normal((*shape, 4)),
        k=2,
        key_bias=rng.standard_normal(units),
        value_bias=rng.standard_normal(4),
        gate=rng.standard_normal((units, 2)) if gated else None,
        select=select,
    )
    for call in (calls.topk_ffn, calls.dense_ffn):
        run = call(problem, xp)
        assert run.out.shape == (*shape, 4)
        if units == 0 and problem.value_bias is not None:
            np.testing.assert_array_equal(run.out - problem.value_bias, 0)
        for grad, array in zip(
            run.grads, (*problem.arrays, *problem.optional.values()), strict=True
        ):
            assert (grad is None) == (array is None)
            assert grad is None or grad.shape == array.shape


@given(problem=attention_QND())
def test_residuals_count_what_is_kept_beyond_the_inputs(
    xp: Backend, problem: AttentionProblem
) -> None:
    for dtype, slot in (("float32", 8), ("float64", 12)):
        _, residuals = topk_np.topk_attention_fwd(
            *problem.astype(dtype).on(xp)[0], **problem.on(xp)[1]
        )
        slots = int(np.prod(residuals.indices.shape))
        assert residuals.indices.shape[-1] == min(problem.k, problem.keys)
        assert residuals.nbytes == slot * slots


@given(problem=ffn_FD())
def test_ffn_residuals_count_one_number_more_where_there_is_a_gate(
    xp: Backend, problem: FFNProblem
) -> None:
    single = problem.astype("float32")
    _, residuals = topk_np.topk_ffn_fwd(*single.on(xp)[0], **single.on(xp)[1])
    slots = int(np.prod(residuals.indices.shape))
    assert residuals.indices.shape == (*problem.x.shape[:-1], min(problem.k, len(problem.keys)))
    assert residuals.scores.shape == residuals.indices.shape
    assert residuals.nbytes == (8 if problem.gate is None else 12) * slots


def test_residuals_are_frozen_and_can_be_used_twice() -> None:
    problem = problem_for("topk_attention")
    assert isinstance(problem, AttentionProblem)
    inputs, options, dout = problem.on(NUMPY)
    _, residuals = topk_np.topk_attention_fwd(*inputs, **options)
    with pytest.raises(AttributeError):
        residuals.indices = None  # type: ignore[misc]
    with pytest.raises(AttributeError):
        residuals.workers = 1  # type: ignore[misc]
    assert "kept" not in repr(residuals)  # which would fill the screen
    first, second = (topk_np.topk_attention_bwd(residuals, dout) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert_same_bits(one, other)
