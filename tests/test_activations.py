"""Activations: their values by definition, their derivatives by differences, -inf left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

import topk_np
from tests.backends import Array, Backend
from tests.oracles import ACTIVATION_NAMES, POINTWISE, activation_by_loops, assert_close
from tests.strategies import seeds
from topk_np.activations import ACTIVATIONS, elementwise, logsumexp

each_activation = pytest.mark.parametrize("name", ACTIVATION_NAMES)
shapes_CN = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)


def value(xp: Backend, name: str, scores: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):  # as the chunks are run
        return xp.to_numpy(ACTIVATIONS[name].value(xp.asarray(scores)))


def vjp(xp: Backend, name: str, scores: np.ndarray, dweights: np.ndarray) -> np.ndarray:
    s, d = xp.arrays(scores, dweights)
    with np.errstate(all="ignore"):
        weights: Array = ACTIVATIONS[name].value(s)
        return xp.to_numpy(ACTIVATIONS[name].vjp(s, weights, d))


def test_the_activations_are_the_documented_ones() -> None:
    assert sorted(ACTIVATIONS) == sorted(ACTIVATION_NAMES)


@each_activation
@given(shape=shapes_CN, seed=seeds)
def test_value_is_the_definition(xp: Backend, name: str, shape: tuple[int, int], seed: int) -> None:
    scores = 3 * np.random.default_rng(seed).standard_normal(shape)
    expected = [activation_by_loops(name, row) for row in scores.tolist()]
    assert_close(value(xp, name, scores), np.asarray(expected), size=20)


@each_activation
@given(shape=shapes_CN, seed=seeds)
def test_vjp_is_the_derivative_along_a_random_direction(
    xp: Backend, name: str, shape: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores, dweights, direction = (rng.standard_normal(shape) for _ in range(3))
    scores += np.sign(scores) * 1e-3  # away from the kink of relu
    h = 1e-6
    ahead, behind = (value(xp, name, scores + step * direction) for step in (h, -h))
    slope = np.sum(dweights * (ahead - behind)) / (2 * h)
    exact = np.sum(vjp(xp, name, scores, dweights) * direction)
    np.testing.assert_allclose(exact, slope, rtol=1e-7, atol=1e-7)


def test_the_tail_of_gelu_is_the_definition_as_far_as_one_can_be_held(xp: Backend) -> None:
    scores = np.linspace(-9, 9, 361)[None, :]
    expected = scores / 2 * np.asarray([[math.erfc(-s / math.sqrt(2)) for s in scores[0]]])
    off = np.abs(value(xp, "gelu", scores) - expected)
    assert (off <= 4 * np.finfo(float).eps * np.abs(scores)).all()


def test_the_log_sum_exp_of_no_scores_is_minus_infinity(xp: Backend) -> None:
    found = xp.to_numpy(logsumexp(xp.asarray(np.zeros((3, 0)))))
    assert found.tolist() == [[-math.inf]] * 3


@each_activation
def test_minus_inf_gets_weight_zero_and_derivative_zero(xp: Backend, name: str) -> None:
    scores = np.asarray([[-math.inf, 1.0, -math.inf, 2.0], [-math.inf] * 4])
    weights = value(xp, name, scores)
    assert (weights[scores == -math.inf] == 0).all()
    assert_close(weights[0, [1, 3]], np.asarray(activation_by_loops(name, [1.0, 2.0])))
    slopes = vjp(xp, name, scores, np.ones((2, 4)))
    assert (slopes[scores == -math.inf] == 0).all()
    assert np.isfinite(slopes).all()


@each_activation
def test_nan_is_not_dropped(xp: Backend, name: str) -> None:
    scores = np.asarray([[math.nan, 1.0], [0.5, 1.0]])
    weights = value(xp, name, scores)
    assert np.isnan(weights[0, 0])
    assert np.isfinite(weights[1]).all()


def test_softmax_of_plus_inf_is_nan_in_the_whole_row(xp: Backend) -> None:
    weights = value(xp, "softmax", np.asarray([[math.inf, 1.0, 2.0], [1.0, 2.0, 3.0]]))
    assert np.isnan(weights[0]).all()
    assert np.isfinite(weights[1]).all()


@each_activation
@pytest.mark.parametrize("size", [50.0, 100.0, 1000.0])
def test_large_scores_overflow_nowhere(xp: Backend, name: str, size: float) -> None:
    scores = np.asarray([[size, 0.0], [-size, 0.0]])
    expected = {"identity": [size, -size], "softmax": [1.0, 0.0]}.get(name, [size, 0.0])
    for dtype in ("float32", "float64"):
        if dtype in xp.dtypes:
            weights = value(xp, name, scores.astype(dtype))[:, 0]
            assert_close(weights, np.asarray(expected, dtype))
            slopes = vjp(xp, name, scores.astype(dtype), np.ones((2, 2), dtype))[:, 0]
            asymptote = {"identity": [1, 1], "softmax": [0, 0]}.get(name, [1, 0])
            assert_close(slopes, np.asarray(asymptote, dtype))


@pytest.mark.parametrize("name", [*POINTWISE])
def test_values_keep_single_precision(xp: Backend, name: str) -> None:
    scores = np.linspace(-4, 4, 41, dtype=np.float32)[None, :]
    expected = np.asarray([activation_by_loops(name, scores[0].tolist())]).astype(np.float32)
    assert_close(value(xp, name, scores), expected)
    assert vjp(xp, name, scores, scores).dtype == np.float32


def test_relu_has_slope_zero_at_zero(xp: Backend) -> None:
    slopes = vjp(xp, "relu", np.asarray([[0.0, -0.0, 1e-300, -1e-300]]), np.ones((1, 4)))
    assert slopes.tolist() == [[0.0, 0.0, 1.0, 0.0]]


def own_silu() -> Any:
    def sigmoid(xp: Any, s: Array) -> Array:
        return 1 / (1 + xp.exp(-s))

    return elementwise(
        lambda xp, s: s * sigmoid(xp, s),
        lambda xp, s: sigmoid(xp, s) * (1 + s * (1 - sigmoid(xp, s))),
    )


def own_relu() -> Any:
    return elementwise(
        lambda xp, s: xp.where(s > 0, s, xp.zeros_like(s)),
        lambda xp, s: xp.where(s > 0, xp.ones_like(s), xp.zeros_like(s)),
    )


def both_ways(name: str, arrays: Any, **options: Any) -> list[Array]:
    """The output of a feed-forward layer and its gradients."""
    out, residuals = getattr(topk_np, f"{name}_ffn_fwd")(*arrays, **options)
    grads = getattr(topk_np, f"{name}_ffn_bwd")(residuals, out)
    return [out, *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize(("builtin", "own"), [("silu", own_silu), ("relu", own_relu)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "rule", [None, "score", "activation"], ids=["dense", "by score", "by activation"]
)
def test_an_activation_of_ones_own_does_what_the_built_in_of_its_formula_does(
    xp: Backend, builtin: str, own: Any, gated: bool, rule: str | None
) -> None:
    rng = np.random.default_rng(0)
    arrays = xp.arrays(*(rng.standard_normal((n, 4)) for n in (9, 30, 30)))
    options = xp.options({"key_bias": rng.standard_normal(30)})
    if gated:
        options |= xp.options({"gate": rng.standard_normal((30, 4))})
    if rule is not None:
        options |= {"k": 5, "select": rule}
    name = "dense" if rule is None else "topk"
    found, expected = (
        both_ways(name, arrays, activation=activation, **options) for activation in (own(), builtin)
    )
    assert len(found) == len(expected) == 5 + gated
    for one, other in zip(found, expected, strict=True):
        assert_close(xp.to_numpy(one), xp.to_numpy(other), size=100.0)


@pytest.mark.parametrize("activation", [None, 1, math.tanh, ("relu",), b"relu", topk_np.ALiBi])
def test_what_is_no_activation_is_refused_by_name(activation: Any) -> None:
    x = np.ones((3, 3))
    with pytest.raises(TypeError, match="activation must be"):
        topk_np.topk_ffn(x, x, x, k=1, activation=activation)
    with pytest.raises(TypeError, match="activation must be"):
        topk_np.dense_ffn(x, x, x, activation=activation)
    with pytest.raises(ValueError, match=r"activation must be one of .*'gelu'.* got 'tanh'"):
        topk_np.topk_ffn(x, x, x, k=1, activation="tanh")
