"""Performer and RFA: the function with all weights written out, in linear memory; exact slopes."""

from __future__ import annotations

import inspect
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import topk_np.baselines
from tests.backends import NUMPY, Backend
from tests.baselines.problems import KINDS, TRIOS, LinearProblem, linear_QND
from tests.oracles import assert_all_close, assert_close, assert_same_bits
from tests.strategies import few_examples
from tests.test_dense import assert_gradients_are_slopes
from topk_np.baselines import (
    performer_attention,
    rfa_attention,
    rfa_attention_bwd,
    rfa_attention_fwd,
)

METHODS: dict[str, Any] = {"performer": performer_attention, "rfa": rfa_attention}
both = pytest.mark.parametrize("method", TRIOS)


def assume_smooth(problem: LinearProblem) -> None:
    """No denominator is close to where it is cut off, or so small that numbers get large."""
    below = problem.denominators
    assume(problem.method == "performer" or bool(np.all((below < -0.1) | (below > 0.1))))


kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@few_examples()
@given(data=st.data())
def test_the_result_is_that_with_all_weights_written_out(
    xp: Backend, kind: str, data: st.DataObject
) -> None:
    problem = data.draw(linear_QND(kind))
    out, grads = problem.run(xp)
    assert_close(out, problem.out, size=1e4)
    # Gradients: those of one large block, which are tested to be slopes.
    assert_all_close(grads, problem.run(NUMPY, chunk_size=1000)[1], size=1e5)


@kinds
@given(data=st.data())
def test_gradients_are_slopes(kind: str, data: st.DataObject) -> None:
    problem = data.draw(linear_QND(kind))
    assume_smooth(problem)
    _, grads = problem.run(NUMPY)

    def loss(*arrays: Any) -> float:
        return float(np.sum(problem.dout * problem.run(NUMPY, arrays=arrays)[0]))

    assert_gradients_are_slopes(loss, problem.arrays, grads, seed=0)


@kinds
@few_examples()
@given(data=st.data())
def test_a_masked_key_gets_no_gradient(kind: str, data: st.DataObject) -> None:
    problem = data.draw(linear_QND(kind))
    _, (_, dkey, dvalue, dgate) = problem.run(NUMPY)
    masked = ~np.isfinite(np.broadcast_to(problem.key[..., 0], problem.key.shape[:-1]))
    assert np.all(dkey[masked] == 0)
    assert np.all(np.isfinite(dkey))
    assert np.all(np.isfinite(dvalue))
    assert dgate is None or np.all(np.isfinite(dgate))


@both
@pytest.mark.parametrize("place", ["key", "value"])
def test_a_nan_reaches_the_queries_that_see_it_and_no_others(method: str, place: str) -> None:
    arrays = dict(zip(("query", "key", "value"), np.ones((3, 7, 2)), strict=True))
    arrays["value"] = np.arange(14.0).reshape(7, 2)
    right = METHODS[method](*arrays.values(), is_causal=True, chunk_size=3)
    arrays[place] = arrays[place].copy()
    arrays[place][4, 0] = np.nan
    out = METHODS[method](*arrays.values(), is_causal=True, chunk_size=3)
    assert np.isnan(out[4:]).all()
    assert_close(out[:4], right[:4])


@both
def test_large_keys_harm_no_query_that_does_not_see_them(method: str) -> None:
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 6, 8)).astype(np.float32)
    key[0] *= 12  # exp(-|k|^2 / 2) would be 0 beside the other keys'
    query[0] = key[0] / 100
    out = METHODS[method](query, key, value, is_causal=True)
    assert np.isfinite(out).all()
    assert_close(out[0], value[0], size=10)


@both
def test_the_error_falls_as_features_grow(method: str) -> None:
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 40, 6)) / 2
    if method == "rfa":
        query, key = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, key))
    for is_causal in (False, True):
        scale = 1.0 if method == "rfa" else None
        exact = topk_np.dense_attention(query, key, value, is_causal=is_causal, scale=scale)
        errors = [
            np.mean(
                [
                    (
                        METHODS[method](
                            query, key, value, features=features, seed=seed, is_causal=is_causal
                        )
                        - exact
                    )
                    ** 2
                    for seed in range(10)
                ]
            )
            for features in (64, 1024)
        ]
        # 16 times as many should make the mean square 16 times smaller: ask for 6.
        assert errors[1] < errors[0] / 6
        assert errors[1] < 0.02


@both
def test_half_precision_is_computed_in_single_and_rounded_once(method: str) -> None:
    fwd, bwd = TRIOS[method]
    for dtype in (np.float16, ml_dtypes.bfloat16):
        half = [x.astype(dtype) for x in np.random.default_rng(0).standard_normal((4, 2, 9, 5))]
        single = [x.astype(np.float32) for x in half]
        results = []
        for *inputs, dout in (half, single):
            out, residuals = fwd(*inputs, is_causal=True, chunk_size=4)
            results.append([out, *(g for g in bwd(residuals, dout) if g is not None)])
        for one, other in zip(*results, strict=True):
            assert one.dtype == dtype
            assert_same_bits(one, other.astype(dtype))


@both
@pytest.mark.usefixtures("tiny_plans")
def test_results_are_the_same_bits_for_any_number_of_workers(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("topk_np.baselines.heads.PACK_ROWS", 40)  # two heads at once
    rng = np.random.default_rng(0)
    query, value = rng.standard_normal((2, 9, 20, 4))
    key, fwd, bwd = rng.standard_normal((20, 4)), *TRIOS[method]
    results = []
    for workers in (1, 3):
        out, residuals = fwd(query, key, value, is_causal=True, chunk_size=7, workers=workers)
        results.append([out, *bwd(residuals, out)])
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)


@both
def test_nothing_of_queries_times_keys_exists(method: str) -> None:
    length = 8192  # a byte for each pair is 64 MiB
    arrays = np.random.default_rng(0).standard_normal((4, length, 8)).astype(np.float32)
    fwd, bwd = TRIOS[method]
    options: dict[str, Any] = {"features": 16, "is_causal": True, "workers": 1}
    if method == "rfa":
        options["gate"] = np.full(length, 0.9, np.float32)
    fwd(*arrays[:3, :10], **{**options, "gate": None} if method == "rfa" else options)
    tracemalloc.start()
    try:
        _, residuals = fwd(*arrays[:3], **options)
        forward = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        bwd(residuals, arrays[3])
        backward = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert residuals.nbytes == 16 * 8 * 4
    assert forward < 3 * 2**20, forward  # the output takes 1/4
    assert backward < 6 * 2**20, backward  # gradients take 3/4 for the head and as much again


def test_gradients_of_small_gates_are_accurate_in_single_precision() -> None:
    rng = np.random.default_rng(0)
    query, key, value, dout = rng.standard_normal((4, 12, 3))
    gate = rng.uniform(0.2, 0.9, 12)
    gate[[2, 5, 7, 8]] = 1e-3, 1e-7, 0, 1
    results: list[Any] = []
    for dtype in (np.float64, np.float32):
        arrays = [x.astype(dtype) for x in (query, key, value)]
        out, residuals = rfa_attention_fwd(
            *arrays, gate=gate.astype(dtype), is_causal=True, chunk_size=5
        )
        assert not np.any(np.isnan(out))
        results.append(rfa_attention_bwd(residuals, dout.astype(dtype)).gate)
    assert_close(results[1], results[0].astype(np.float32), size=100)


def test_a_gate_is_the_recurrence_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    x, value = rng.standard_normal((2, 8, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    w, gate = rng.standard_normal((40, 3)), rng.uniform(0, 1, 8)
    phi = np.concatenate([np.sin(x @ w.T), np.cos(x @ w.T)], axis=1) / np.sqrt(40)
    s, z = np.zeros((80, 3)), np.zeros(80)
    expected = []
    for t in range(8):  # section 3.2
        s = gate[t] * s + (1 - gate[t]) * np.outer(phi[t], value[t])
        z = gate[t] * z + (1 - gate[t]) * phi[t]
        expected.append(phi[t] @ s / max(phi[t] @ z, 0.01))
    out = rfa_attention(x, x, value, gate=gate, projection=w, is_causal=True, chunk_size=3)
    assert_close(out, np.asarray(expected), size=100)


@both
@pytest.mark.parametrize(("queries", "keys", "width"), [(0, 3, 2), (3, 0, 2), (3, 3, 0)])
def test_zero_lengths_work(method: str, queries: int, keys: int, width: int) -> None:
    fwd, bwd = TRIOS[method]
    arrays = np.ones((2, queries, width)), np.ones((2, keys, width)), np.ones((2, keys, 1))
    out, residuals = fwd(*arrays, features=4)
    assert_close(out, np.full((2, queries, 1), float(keys > 0)))
    for grad, array in zip(bwd(residuals, out), arrays, strict=False):
        assert grad.shape == array.shape


ONES = np.ones((2, 3, 4))


@both
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": np.ones((3, 3), bool)}, ValueError, r"same for all queries.*got shape \(3, 3\)"),
        ({"mask": lambda i, j: j != 1}, ValueError, "same for all queries.*got a function"),
        ({"mask": np.ones((1, 3))}, TypeError, "mask must be boolean"),
        ({"query_offset": np.array([1, 2]), "is_causal": True}, ValueError, "one integer here"),
        ({"features": 0}, ValueError, "features must be at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"projection": np.ones((5, 3))}, ValueError, r"at least 1, 4\), got \(5, 3\)"),
        ({"projection": np.ones((5, 4), "f")}, TypeError, "projection must have the dtype of que"),
        ({"projection": np.ones((5, 4)), "seed": 0}, ValueError, "seed must be None where a proj"),
        ({"is_causal": 1}, TypeError, "is_causal must be True or False"),
        ({"window": (1, 1)}, TypeError, "unexpected keyword argument 'window'"),
    ],
)
def test_bad_options_are_named(
    method: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        METHODS[method](ONES, ONES, ONES, **options)


@pytest.mark.parametrize(
    ("gate", "options", "error", "message"),
    [
        (np.ones(3), {}, ValueError, "gate must be None without is_causal=True"),
        (np.ones(4), {"is_causal": True}, ValueError, "gate's last axis must be equal to the num"),
        (np.ones((3, 3)), {"is_causal": True}, ValueError, r"gate must broadcast to \(..., N\)"),
        (np.array(1.0), {"is_causal": True}, ValueError, r"gate must have shape \(..., N\)"),
        (np.ones(3, "f"), {"is_causal": True}, TypeError, "gate must have the dtype of query"),
        (np.full(3, 1.5), {"is_causal": True}, ValueError, "numbers from 0 to 1"),
    ],
)
def test_bad_gates_are_named(
    gate: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rfa_attention(ONES, ONES, ONES, gate=gate, **options)


@both
def test_a_trio_belongs_together(method: str) -> None:
    function, (fwd, bwd) = METHODS[method], TRIOS[method]
    assert inspect.signature(function).parameters == inspect.signature(fwd).parameters
    other: Any = ()
    with pytest.raises(TypeError, match=f"residuals must come from {method}_attention_fwd, got tu"):
        bwd(other, ONES)
    out, residuals = fwd(ONES, ONES, ONES)
    with pytest.raises(ValueError, match="dout must have the shape of the output"):
        bwd(residuals, out[0])


def test_orthogonal_vectors_are_so_and_each_is_normal() -> None:
    w = topk_np.baselines.draw_projection(4 * 2000, 4, seed=1)
    blocks = w.reshape(2000, 4, 4)
    products = blocks @ blocks.mT
    assert_close(products * (1 - np.eye(4)), np.zeros_like(products), size=30)
    # Means of 32,000 numbers: within 5 standard errors of a normal distribution's moments.
    for power, moment, deviation in ((1, 0, 1), (2, 1, np.sqrt(2)), (3, 0, np.sqrt(15))):
        assert abs(np.mean(w**power) - moment) < 5 * deviation / np.sqrt(w.size)
    assert abs(np.mean(w[:, 0] * w[:, 1])) < 5 / np.sqrt(len(w))
    assert np.array_equal(w, topk_np.baselines.draw_projection(4 * 2000, 4, seed=1))


def test_orthogonal_vectors_make_smaller_errors_than_independent_ones() -> None:
    away = np.random.default_rng(0).standard_normal((20, 8)) / 2
    exact = np.exp(-np.sum(away**2, axis=1) / 2)
    errors = []
    for orthogonal in (True, False):
        drawn = [
            topk_np.baselines.draw_projection(8, 8, seed=seed, orthogonal=orthogonal)
            for seed in range(100)
        ]
        estimates = [np.mean(np.cos(away @ w.T), axis=1) for w in drawn]
        errors.append(np.mean((np.stack(estimates) - exact) ** 2))
    assert errors[0] < errors[1] / 2
