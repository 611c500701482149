"""How much softmax mass top-k keeps, and how many keys it takes to keep it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import calls
from tests.backends import Array, Backend
from tests.strategies import AttentionProblem, attention_with_options, seeds
from topk_np.diagnostics import kept_mass, keys_for_mass

RNG = np.random.default_rng(0)
QUERY, KEY = RNG.standard_normal((2, 3, 5, 4)), RNG.standard_normal((3, 7, 4))


def by_definition(
    query: np.ndarray, key: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Sort the dense weights of every query, add up the k largest."""
    scores = query @ np.swapaxes(key, -1, -2) / math.sqrt(query.shape[-1])
    weights = np.exp(scores)
    if allowed is not None:
        weights = np.where(allowed, weights, 0)
    total = weights.sum(axis=-1)
    kept = -np.sort(-weights, axis=-1)[..., :k].sum(axis=-1)
    return np.asarray(np.where(total > 0, kept / np.where(total > 0, total, 1), 0))


@pytest.mark.parametrize("k", [1, 3, 7, 100])
def test_kept_mass_is_that_of_the_k_largest_weights(xp: Backend, k: int) -> None:
    mass = kept_mass(*xp.arrays(QUERY, KEY), k=k)
    np.testing.assert_allclose(xp.to_numpy(mass), by_definition(QUERY, KEY, k), rtol=1e-12)


def test_several_k_are_measured_in_one_pass() -> None:
    ks = [4, 1, 4, 9]
    mass = kept_mass(QUERY, KEY, k=ks)
    assert mass.shape == (4, 2, 3, 5)
    for one, k in zip(mass, ks, strict=True):
        np.testing.assert_allclose(one, kept_mass(QUERY, KEY, k=k), rtol=1e-12)
    assert np.array_equal(mass, kept_mass(QUERY, KEY, k=tuple(ks)))


def test_masks_and_causality_limit_what_can_be_kept() -> None:
    mask = RNG.random((5, 7)) < 0.6
    mask[2] = False
    causal = np.arange(7) <= np.arange(5)[:, None] + 1
    mass = kept_mass(QUERY, KEY, k=2, mask=mask, is_causal=True, query_offset=1)
    np.testing.assert_allclose(mass, by_definition(QUERY, KEY, 2, mask & causal), rtol=1e-12)
    assert np.all(mass[..., 2] == 0)


@given(chunk=st.integers(1, 9), workers=st.integers(1, 3))
def test_chunks_and_workers_change_nothing_but_rounding(chunk: int, workers: int) -> None:
    mass = kept_mass(QUERY, KEY, k=2, chunk_size=chunk, workers=workers)
    np.testing.assert_allclose(mass, kept_mass(QUERY, KEY, k=2), rtol=1e-12)


def test_scale_sharpens_the_weights() -> None:
    assert np.all(kept_mass(QUERY, KEY, k=1, scale=9.0) > kept_mass(QUERY, KEY, k=1, scale=0.1))


def test_no_keys_hold_no_mass() -> None:
    assert np.array_equal(kept_mass(np.ones((3, 2)), np.ones((0, 2)), k=1), np.zeros(3))


def test_nan_is_not_dropped() -> None:
    query = QUERY.copy()
    query[0, 0, 0, 0] = np.nan
    assert np.isnan(kept_mass(query, KEY, k=2)[0, 0, 0])


def test_half_precision_is_measured_in_single() -> None:
    mass = kept_mass(QUERY.astype(np.float16), KEY.astype(np.float16), k=2)
    assert mass.dtype == np.float32
    np.testing.assert_allclose(mass, by_definition(QUERY, KEY, 2), rtol=0.02)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, "k must be at least 1, got 0"),
        ([4, 0], ValueError, "k must be at least 1, got 0"),
        ([], ValueError, "k must be an integer or a list of at least one, got an empty one"),
        (2.0, TypeError, "k must be an integer, got 2.0"),
        ([True], TypeError, "k must be an integer, got True"),
    ],
)
def test_k_is_checked(k: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kept_mass(QUERY, KEY, k=k)


def attention_inputs(
    problem: AttentionProblem, xp: Backend
) -> tuple[tuple[Array, Array], dict[str, Any]]:
    """Query and key with the leading axes of all three, since options are drawn for those."""
    query = np.broadcast_to(problem.query, (*problem.lead, *problem.query.shape[-2:]))
    return xp.arrays(query, problem.key), xp.options(problem.dense_options)


@given(problem=attention_with_options())
def test_kept_mass_is_that_of_the_keys_that_topk_attention_keeps_with_any_options(
    xp: Backend, problem: AttentionProblem
) -> None:
    problem = replace(problem, p=None)
    inputs, options = attention_inputs(problem, xp)
    mass = xp.to_numpy(kept_mass(*inputs, k=problem.k, **options))
    kept = xp.to_numpy(calls.topk_attention(problem, xp).residuals.indices)
    pairs = calls.selected_pairs(kept, problem.keys)
    expected = np.sum(np.where(pairs, problem.weights, 0), axis=-1)
    np.testing.assert_allclose(mass, expected, atol=1e-12 * problem.size)


@given(problem=attention_with_options(whole=False), mass=st.floats(0.05, 0.999))
def test_keys_for_mass_is_the_least_k_that_keeps_it_with_any_options(
    xp: Backend, problem: AttentionProblem, mass: float
) -> None:
    inputs, options = attention_inputs(problem, xp)
    fewest = xp.to_numpy(keys_for_mass(*inputs, mass=mass, **options))
    ks = list(range(1, problem.keys + 1))
    always = np.sum(np.where(problem.always_kept, problem.weights, 0), axis=-1)
    kept = np.stack([always, *xp.to_numpy(kept_mass(*inputs, k=ks, **options))])
    assert fewest.shape == always.shape == (*problem.lead, problem.queries)
    enough = np.take_along_axis(kept, fewest[None], 0)[0]
    less = np.take_along_axis(kept, np.maximum(fewest - 1, 0)[None], 0)[0]
    slack = 1e-12 * problem.size
    none = ~np.any(problem.allowed & (problem.scores > -np.inf), axis=-1)
    assert np.all(fewest[none] == 0)
    assert np.all((enough >= mass - slack) | none)
    assert np.all((less <= mass + slack) | (fewest == 0))


@given(sinks=st.integers(0, 8), local=st.integers(0, 8), seed=seeds)
def test_keys_always_kept_are_kept_beside_the_k_best(sinks: int, local: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, key = rng.standard_normal((2, 7, 3))
    always: Any = {"always_keep": (sinks, local), "is_causal": True}
    with_them = kept_mass(query, key, k=[1, 2, 7], **always)
    without = kept_mass(query, key, k=[1, 2, 7], is_causal=True)
    assert np.all(with_them >= without - 1e-12)
    # What k + sinks + local keys hold at most.
    best = kept_mass(query, key, k=[k + sinks + local for k in (1, 2, 7)], is_causal=True)
    assert np.all(with_them <= best + 1e-12)
    assert np.all(
        keys_for_mass(query, key, mass=0.9, **always)
        <= keys_for_mass(query, key, mass=0.9, is_causal=True)
    )


def test_nothing_more_is_needed_where_the_keys_always_kept_hold_enough() -> None:
    query, key = np.zeros((1, 2)), np.ones((4, 2))
    for sinks, expected in ((0, 3), (1, 2), (2, 1), (3, 0), (4, 0)):
        assert keys_for_mass(query, key, mass=0.7, always_keep=(sinks, 0)) == [expected]


def test_nan_among_keys_always_kept_is_not_dropped() -> None:
    key = KEY.copy()
    key[1, 0] = np.nan
    always: Any = {"always_keep": (7, 0)}
    assert np.array_equal(
        np.isnan(kept_mass(QUERY, key, k=1, **always))[0, :, 0], [False, True, False]
    )
    assert np.array_equal(keys_for_mass(QUERY, key, mass=0.5, **always)[0, :, 0], [0, -1, 0])


def test_all_mass_needs_no_more_than_the_allowed_keys() -> None:
    mask = np.arange(7) < 4
    assert np.all(keys_for_mass(QUERY, KEY, mass=1, mask=mask) <= 4)
    query = QUERY.copy()
    query[0, 0, 0] = np.nan
    assert keys_for_mass(query, KEY, mass=0.5)[0, 0, 0] == -1


@pytest.mark.parametrize("mass", [0, -0.5, 1.5])
def test_mass_is_checked(mass: float) -> None:
    with pytest.raises(ValueError, match="mass must be above 0 and at most 1, got"):
        keys_for_mass(QUERY, KEY, mass=mass)
