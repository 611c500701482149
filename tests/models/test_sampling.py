"""Choosing the next token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.backends import Backend
from topk_np.models.decode import Sampling

scores_RT = arrays(
    np.float32, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.integers(-6, 6)
)
seeds = st.integers(0, 2**32)


def probabilities(scores: np.ndarray, temperature: float) -> np.ndarray:
    """The softmax of each row."""
    powers = np.exp((scores - scores.max(axis=-1, keepdims=True)) / temperature)
    weights: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return weights


def choose(xp: Backend, scores: np.ndarray, **options: Any) -> np.ndarray:
    """What is chosen on a backend."""
    return xp.to_numpy(Sampling(**options).choose(xp.asarray(scores)))


@given(scores=scores_RT)
def test_by_default_the_first_of_the_largest_scores_is_chosen(
    xp: Backend, scores: np.ndarray
) -> None:
    assert np.array_equal(choose(xp, scores), np.argmax(scores, axis=-1))


@given(scores=scores_RT, temperature=st.floats(0.1, 9), top_p=st.floats(1e-3, 1), seed=seeds)
def test_draws_are_among_the_fewest_tokens_that_hold_top_p(
    xp: Backend, scores: np.ndarray, temperature: float, top_p: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    chosen = choose(xp, scores, temperature=temperature, top_p=top_p, rng=rng)
    assert chosen.shape == scores.shape[:1]
    rows = probabilities(scores.astype(np.float64), temperature)
    for row, token in zip(rows, chosen, strict=True):
        before = np.sum(row[row > row[token]]) + np.sum(row[:token][row[:token] == row[token]])
        assert before < top_p + 1e-12


@given(scores=scores_RT, seed=seeds)
def test_a_low_temperature_and_a_low_top_p_are_greedy(
    xp: Backend, scores: np.ndarray, seed: int
) -> None:
    greedy = np.argmax(scores, axis=-1)
    rng = np.random.default_rng(seed)
    assert np.array_equal(choose(xp, scores, temperature=1.0, top_p=1e-9, rng=rng), greedy)
    cold = choose(xp, scores, temperature=1e-3, rng=rng)
    assert np.array_equal(np.take_along_axis(scores, cold[:, None], 1)[:, 0], scores.max(axis=-1))


@pytest.mark.parametrize(
    ("temperature", "top_p", "kept"), [(1.0, 1.0, 4), (0.5, 1.0, 4), (2.0, 0.8, 3), (1.0, 0.5, 1)]
)
def test_tokens_come_as_often_as_their_probability_says(
    xp: Backend, temperature: float, top_p: float, kept: int
) -> None:
    scores = np.log(np.array([0.1, 0.55, 0.05, 0.3], np.float32))
    draws, rng = 4000, np.random.default_rng(0)
    rows = np.broadcast_to(scores, (draws, 4))
    chosen = choose(xp, rows, temperature=temperature, top_p=top_p, rng=rng)
    expected = probabilities(scores, temperature)
    expected[np.argsort(-expected)[kept:]] = 0
    expected /= expected.sum()
    shares = np.bincount(chosen, minlength=4) / draws
    assert np.array_equal(shares > 0, expected > 0)
    assert np.max(np.abs(shares - expected)) < 5 * np.sqrt(0.25 / draws)


@given(scores=scores_RT, seed=seeds)
def test_every_backend_draws_the_same(xp: Backend, scores: np.ndarray, seed: int) -> None:
    options: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9}
    here = choose(xp, scores, rng=np.random.default_rng(seed), **options)
    rng = np.random.default_rng(seed)
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = probabilities(np.take_along_axis(scores, order, -1).astype(np.float64), 0.7)
    for row, p, token in zip(order, ranked, here, strict=True):
        mass = np.cumsum(p)
        last = int(np.argmax(mass >= 0.9 * mass[-1]))
        u = rng.random() * mass[last]
        # either side of a boundary, where u lies within rounding of it
        near = {int(np.argmax(mass > u * (1 + e))) for e in (-1e-12, 0, 1e-12)}
        assert token in {row[min(place, last)] for place in near}


def test_a_number_that_rounds_up_to_the_whole_mass_is_the_last_kept_token(xp: Backend) -> None:
    class One(np.random.Generator):
        def random(self, size: Any = None, *args: Any, **kwargs: Any) -> Any:
            return np.ones(size)

    rng = One(np.random.PCG64(0))
    scores = np.array([[0.0, 3.0, 0.0, 1.0]])
    assert choose(xp, scores, temperature=1.0, rng=rng).tolist() == [2]
    assert choose(xp, scores, temperature=1.0, top_p=0.9, rng=rng).tolist() == [3]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": -0.5}, ValueError, r"temperature must be at least 0, got -0\.5"),
        ({"temperature": "1"}, TypeError, "temperature must be a real number, got '1'"),
        ({"temperature": float("nan")}, ValueError, "temperature must be finite"),
        ({"top_p": 0.0}, ValueError, r"top_p must be above 0 and at most 1, got 0\.0"),
        ({"top_p": 1.5}, ValueError, r"top_p must be above 0 and at most 1, got 1\.5"),
        ({"temperature": 1.0}, ValueError, "rng, a numpy Generator, is required where temper"),
        ({"rng": 7}, TypeError, "rng must be a numpy Generator, got int"),
    ],
)
def test_options_are_checked(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Sampling(**options)
