"""How far top-k attention can be from dense attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import calls
from tests.backends import Backend
from tests.strategies import AttentionProblem, attention_with_options
from topk_np.diagnostics import error_bound, kept_mass

RNG = np.random.default_rng(0)
QUERY, KEY = RNG.standard_normal((2, 3, 5, 4)), RNG.standard_normal((3, 7, 4))


@given(problem=attention_with_options())
def test_dense_and_topk_differ_by_no_more_than_the_bound_with_any_options(
    xp: Backend, problem: AttentionProblem
) -> None:
    problem = replace(problem, p=None, dropout=None)
    inputs, options, _ = problem.on(xp)
    bound = xp.to_numpy(error_bound(*inputs, **options))
    distance = calls.dense_attention(problem, xp).out - calls.topk_attention(problem, xp).out
    slack = 1e-12 * problem.size
    assert np.all(np.linalg.norm(distance, axis=-1) <= bound + slack)
    # Tight enough to be of use: nothing is left out where all keys are kept.
    everything = error_bound(*inputs, **{**options, "k": problem.keys})
    assert np.all(xp.to_numpy(everything) <= slack)


@given(problem=attention_with_options())
def test_the_bound_is_that_of_the_mass_left_out_and_the_largest_value_with_any_options(
    xp: Backend, problem: AttentionProblem
) -> None:
    problem = replace(problem, p=None)
    inputs, options, _ = problem.on(xp)
    bound = xp.to_numpy(error_bound(*inputs, **options))
    pairs = calls.selected_pairs(
        xp.to_numpy(calls.topk_attention(problem, xp).residuals.indices), problem.keys
    )
    left = np.sum(np.where(pairs, 0, problem.weights), axis=-1)
    norms = np.linalg.norm(problem.value, axis=-1)[..., None, :]
    largest = np.max(np.where(problem.scores > -np.inf, norms, 0), axis=-1)
    np.testing.assert_allclose(bound, 2 * left * largest, atol=1e-12 * problem.size)


@given(values=st.lists(st.floats(0.5, 9), min_size=2, max_size=2, unique=True))
def test_the_bound_is_reached_by_opposite_values(values: list[float]) -> None:
    size = values[0]
    query, key, value = np.zeros((1, 1)), np.ones((2, 1)), np.asarray([[size], [-size]])
    # Dense gives 0, the first key alone its own value.
    np.testing.assert_allclose(error_bound(query, key, value, k=1), [size], rtol=1e-12)


def test_the_bound_looks_at_allowed_keys_only() -> None:
    value = RNG.standard_normal((7, 2))
    mask = np.ones((5, 7), bool)
    mask[:, 3], mask[2] = False, False
    bound = error_bound(QUERY, KEY, value, k=2, mask=mask)
    value[3] = np.nan
    np.testing.assert_array_equal(error_bound(QUERY, KEY, value, k=2, mask=mask), bound)
    assert np.all(bound[..., 2] == 0)
    assert np.all(np.delete(bound, 2, axis=-1) > 0)


@pytest.mark.parametrize("sinks", [0, 3, 6])
def test_keys_always_kept_count_once(sinks: int) -> None:
    value = RNG.standard_normal((7, 2))
    always: Any = {"k": 1, "always_keep": (sinks, 0)}
    left = 1 - kept_mass(QUERY, KEY, **always)
    expected = 2 * left * np.linalg.norm(value, axis=-1).max()
    np.testing.assert_allclose(error_bound(QUERY, KEY, value, **always), expected, atol=1e-14)
    assert np.all(left > 0.001) if sinks < 6 else np.all(left < 1e-14)
