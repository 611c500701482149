"""The top-k feed-forward layer is the dense one with the selected units alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import topk_np
from tests import calls
from tests.backends import Backend
from tests.oracles import (
    ACTIVATION_NAMES,
    assert_all_close,
    assert_close,
    assert_same_bits,
    ffn_by_loops,
)
from tests.strategies import FFNProblem, ffn_FD, seeds
from tests.test_dense import assert_gradients_are_slopes, away_from_the_kink

pytestmark = pytest.mark.usefixtures("tiny_plans")

each_activation = pytest.mark.parametrize("activation", ACTIVATION_NAMES)
each_form = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
each_select = pytest.mark.parametrize("select", ["score", "activation"])


def token_by_token(problem: FFNProblem, indices: np.ndarray) -> calls.Run:
    """The dense layer applied to each token with its own selected units and nothing else."""
    out = np.zeros_like(problem.dout)
    inputs = (*problem.arrays, *problem.optional.values())
    totals = [None if array is None else np.zeros_like(array) for array in inputs]
    for at in np.ndindex(problem.x.shape[:-1]):
        units = indices[at]
        optional: dict[str, Any] = {
            "key_bias": None if problem.key_bias is None else problem.key_bias[units],
            "value_bias": problem.value_bias,
            "gate": None if problem.gate is None else problem.gate[units],
        }
        part = replace(
            problem,
            x=problem.x[at],
            keys=problem.keys[units],
            values=problem.values[units],
            dout=problem.dout[at],
            **optional,
        )
        run = calls.dense_ffn(part)
        out[at] = run.out
        places: tuple[Any, ...] = (at, units, units, units, slice(None), units)
        for total, place, grad in zip(totals, places, run.grads, strict=True):
            if total is not None:
                total[place] += grad
    return calls.Run(out, tuple(totals), None)


@given(problem=ffn_FD(), extra=st.integers(0, 3))
def test_topk_equals_dense_when_k_covers_all_units(
    xp: Backend, problem: FFNProblem, extra: int
) -> None:
    topk = calls.topk_ffn(problem, xp, k=len(problem.keys) + extra)
    dense = calls.dense_ffn(problem, xp)
    assert_close(topk.out, dense.out, size=problem.size)
    assert_all_close(topk.grads, dense.grads, size=problem.size)


@each_activation
@each_form
@given(data=st.data())
def test_topk_equals_dense_restricted_to_the_selected_units(
    activation: str, gated: bool, data: st.DataObject
) -> None:
    problem = data.draw(ffn_FD(activation=activation, gated=gated))
    topk = calls.topk_ffn(problem)
    expected = token_by_token(problem, topk.residuals.indices)
    assert_close(topk.out, expected.out, size=problem.size)
    assert_all_close(topk.grads, expected.grads, size=problem.size)


@given(problem=ffn_FD())
def test_topk_ffn_is_the_same_on_every_library(xp: Backend, problem: FFNProblem) -> None:
    run, reference = calls.topk_ffn(problem, xp), calls.topk_ffn(problem)
    indices = xp.to_numpy(run.residuals.indices)
    assume(np.array_equal(indices, reference.residuals.indices) or problem.select == "score")
    assert_same_bits(indices, reference.residuals.indices)
    assert_close(run.out, reference.out, size=problem.size)
    assert_all_close(run.grads, reference.grads, size=problem.size)


@each_activation
@each_form
@each_select
@given(data=st.data())
def test_topk_ffn_is_the_triple_loop(
    activation: str, gated: bool, select: str, data: st.DataObject
) -> None:
    problem = data.draw(ffn_FD(whole=False, activation=activation, gated=gated, select=select))
    out, residuals = topk_np.topk_ffn_fwd(*problem.arrays, **problem.options)
    expected, taken = ffn_by_loops(
        *problem.arrays, k=problem.k, activation=activation, select=select, **problem.optional
    )
    assert residuals.indices.dtype == np.int32
    if select == "score" or activation in ("relu", "identity") or gated:
        assert residuals.indices.tolist() == taken.tolist()
    else:
        assume(np.array_equal(residuals.indices, taken))
    assert_close(out, expected, size=problem.size)


@each_activation
@given(data=st.data())
def test_scores_tie_towards_the_lower_index(
    xp: Backend, activation: str, data: st.DataObject
) -> None:
    """Products of whole numbers are exact, so equal scores are equal; a gate's score decides."""
    problem = data.draw(ffn_FD(whole=True, activation=activation, select="score"))
    inputs, options, _ = problem.on(xp)
    _, residuals = topk_np.topk_ffn_fwd(*inputs, **options)
    _, taken = ffn_by_loops(*problem.arrays, k=problem.k, activation=activation, **problem.optional)
    assert xp.to_numpy(residuals.indices).tolist() == taken.tolist()


@each_form
@given(data=st.data())
def test_ranking_by_activation_is_by_absolute_value_with_ties_to_the_lower_index(
    xp: Backend, gated: bool, data: st.DataObject
) -> None:
    activation = data.draw(st.sampled_from(["identity", "relu"]))
    problem = data.draw(ffn_FD(whole=True, activation=activation, gated=gated, select="activation"))
    inputs, options, _ = problem.on(xp)
    _, residuals = topk_np.topk_ffn_fwd(*inputs, **options)
    _, taken = ffn_by_loops(
        *problem.arrays,
        k=problem.k,
        activation=activation,
        select="activation",
        **problem.optional,
    )
    assert xp.to_numpy(residuals.indices).tolist() == taken.tolist()


@given(problem=ffn_FD(activation="relu", gated=False))
def test_relu_is_exact_once_k_covers_the_active_units(xp: Backend, problem: FFNProblem) -> None:
    bias = 0.0 if problem.key_bias is None else problem.key_bias
    active = (problem.x @ problem.keys.T + bias > 0).sum(axis=-1).max()
    topk = calls.topk_ffn(problem, xp, k=max(1, int(active)))
    dense = calls.dense_ffn(problem, xp)
    assert_close(topk.out, dense.out, size=problem.size)
    assert_all_close(topk.grads, dense.grads, size=problem.size)


@given(problem=ffn_FD(whole=True, select="score"), size=st.integers(1, 6))
def test_chunk_size_changes_no_selection_and_results_by_rounding_alone(
    xp: Backend, problem: FFNProblem, size: int
) -> None:
    one = calls.topk_ffn(problem, xp, chunk_size=None)
    other = calls.topk_ffn(problem, xp, chunk_size=size)
    indices = (xp.to_numpy(run.residuals.indices) for run in (one, other))
    assert_same_bits(*indices)
    assert_close(other.out, one.out, size=problem.size)
    assert_all_close(other.grads, one.grads, size=problem.size)


@given(problem=ffn_FD())
def test_units_that_no_token_selects_get_exactly_zero_gradient(
    xp: Backend, problem: FFNProblem
) -> None:
    run = calls.topk_ffn(problem, xp)
    taken = np.unique(xp.to_numpy(run.residuals.indices))
    idle = np.setdiff1d(np.arange(len(problem.keys)), taken)
    _, keys, values, key_bias, _, gate = run.grads
    for grad in (keys, values, key_bias, gate):
        assert grad is None or (grad[idle] == 0).all()


@each_activation
@each_form
@pytest.mark.parametrize("biased", [False, True], ids=["unbiased", "biased"])
@each_select
@given(data=st.data(), seed=seeds)
def test_topk_ffn_gradients_are_slopes(
    activation: str, gated: bool, biased: bool, select: str, data: st.DataObject, seed: int
) -> None:
    problem = data.draw(
        ffn_FD(whole=False, activation=activation, gated=gated, biased=biased, select=select)
    )
    if activation == "relu":
        problem = away_from_the_kink(problem)
    run = calls.topk_ffn(problem)
    kept = run.residuals.indices

    def loss(*arrays: Any) -> float:
        *inputs, key_bias, value_bias, gate = arrays
        given = {"key_bias": key_bias, "value_bias": value_bias, "gate": gate}
        out, residuals = topk_np.topk_ffn_fwd(*inputs, **{**problem.options, **given})
        assume(np.array_equal(residuals.indices, kept))  # no unit may enter or leave on the way
        return float(np.sum(problem.dout * out))

    inputs = (*problem.arrays, *problem.optional.values())
    assert_gradients_are_slopes(loss, inputs, run.grads, seed)


@given(problem=ffn_FD(activation="identity", gated=False, select="score"))
def test_a_single_token_needs_no_axis(xp: Backend, problem: FFNProblem) -> None:
    first = (0,) * (problem.x.ndim - 1)
    alone = replace(problem, x=problem.x[first], dout=problem.dout[first])
    for call in (calls.topk_ffn, calls.dense_ffn):
        run, whole = call(alone, xp), call(problem, xp)
        assert run.out.shape == problem.values.shape[1:]
        assert_close(run.out, whole.out[first], size=problem.size)
        assert run.grads[0] is not None
        assert run.grads[0].shape == problem.x.shape[-1:]


@each_activation
@each_select
def test_a_bias_of_minus_inf_switches_a_unit_off(xp: Backend, activation: str, select: str) -> None:
    rng = np.random.default_rng(1)
    problem = FFNProblem(
        rng.standard_normal((4, 3)),
        rng.standard_normal((6, 3)),
        rng.standard_normal((6, 2)),
        rng.standard_normal((4, 2)),
        k=6,
        activation=activation,
        key_bias=np.where(np.arange(6) == 2, -np.inf, 0.1),
        select=select,
    )
    others = np.delete(np.arange(6), 2)
    without = replace(
        problem,
        keys=problem.keys[others],
        values=problem.values[others],
        key_bias=np.full(5, 0.1),
    )
    for call in (calls.topk_ffn, calls.dense_ffn):
        run, expected = call(problem, xp), call(without, xp)
        assert_close(run.out, expected.out, size=problem.size)
        for grad, other in zip(run.grads[:4], expected.grads[:4], strict=True):
            assert grad is not None
            assert other is not None
            if len(grad) == 6:
                assert (grad[2] == 0).all()
                grad = grad[others]
            assert_close(grad, other, size=problem.size)


def test_values_of_no_width_have_a_key_bias_gradient_of_zero() -> None:
    keys, values = np.ones((4, 3)), np.ones((4, 0))
    out, residuals = topk_np.topk_ffn_fwd(np.ones((2, 3)), keys, values, k=2, key_bias=np.ones(4))
    grads = topk_np.topk_ffn_bwd(residuals, out)
    assert grads.key_bias is not None
    assert grads.key_bias.tolist() == [0.0] * 4


def test_an_infinite_weight_times_an_infinite_value_is_infinite_dense_too() -> None:
    inf = np.full((1, 1), np.inf)
    assert topk_np.dense_ffn(inf, np.ones((1, 1)), inf, activation="identity") == np.inf
    assert topk_np.topk_ffn(inf, np.ones((1, 1)), inf, activation="identity", k=1) == np.inf


def test_the_score_of_an_unused_slot_is_minus_infinity(xp: Backend) -> None:
    x, keys = np.random.default_rng(0).standard_normal((2, 4, 3))
    bias = xp.asarray(np.where(np.arange(4) == 2, -np.inf, 0.0))
    arrays = xp.arrays(x, keys, keys)
    _, residuals = topk_np.topk_ffn_fwd(
        *arrays, k=4, activation="gelu", key_bias=bias, select="activation"
    )
    unused = xp.to_numpy(residuals.indices) < 0
    assert unused.sum(axis=1).tolist() == [1] * 4
    assert (xp.to_numpy(residuals.scores)[unused] == -np.inf).all()


def test_residuals_are_equal_to_themselves_alone() -> None:
    """Arrays are neither true nor false, and have no hash."""
    x = np.ones((2, 3))
    one, other = (topk_np.topk_ffn_fwd(x, x, x, k=1)[1] for _ in range(2))
    assert one != other
    assert len({one, other, one}) == 2
