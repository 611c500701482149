"""How much softmax mass top-k keeps."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import calls
from tests.backends import NUMPY, Backend
from tests.strategies import AttentionProblem, attention_QND
from topk_np import topk_attention_fwd
from topk_np.diagnostics import attention_csr, error_bound, kept_mass, keys_for_mass

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


def test_memory_is_not_quadratic_in_length() -> None:
    x = RNG.standard_normal((4000, 2), dtype=np.float32)
    kept_mass(x[:9], x[:9], k=2)
    tracemalloc.start()
    kept_mass(x, x, k=[2, 8], memory_budget=2 * 2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20  # all scores would be 64 MB


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


@given(problem=attention_QND())
def test_dense_and_topk_differ_by_no_more_than_the_bound(
    xp: Backend, problem: AttentionProblem
) -> None:
    inputs, options, _ = problem.on(xp)
    bound = xp.to_numpy(error_bound(*inputs, **options))
    distance = calls.dense_attention(problem, xp).out - calls.topk_attention(problem, xp).out
    slack = 1e-12 * problem.size
    assert np.all(np.linalg.norm(distance, axis=-1) <= bound + slack)
    # Tight enough to be of use: nothing is left out where all keys are kept.
    everything = error_bound(*inputs, **{**options, "k": problem.keys})
    assert np.all(xp.to_numpy(everything) <= slack)


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


@given(problem=attention_QND(whole=False), mass=st.floats(0.05, 0.999))
def test_keys_for_mass_is_the_least_k_that_keeps_it(
    xp: Backend, problem: AttentionProblem, mass: float
) -> None:
    # The leading axes of all three, since masks are drawn for those.
    whole = np.broadcast_to(problem.query, (*problem.lead, *problem.query.shape[-2:]))
    query, key = xp.arrays(whole, problem.key)
    options = xp.options({**problem.masks, "scale": problem.scale})
    fewest = xp.to_numpy(keys_for_mass(query, key, mass=mass, **options))
    ks = list(range(1, problem.keys + 1))
    kept = xp.to_numpy(kept_mass(query, key, k=ks, **options))
    kept = np.concatenate([np.zeros((1, *kept.shape[1:])), kept])
    none = kept[-1] == 0
    assert fewest.shape == kept.shape[1:] == (*problem.lead, problem.queries)
    assert np.all((fewest == 0) == none)
    enough = np.take_along_axis(kept, fewest[None], 0)[0]
    less = np.take_along_axis(kept, np.maximum(fewest - 1, 0)[None], 0)[0]
    assert np.all((enough >= mass - 1e-12) | none)
    assert np.all((less <= mass + 1e-12) | none)


def test_all_mass_needs_no_more_than_the_allowed_keys() -> None:
    mask = np.arange(7) < 4
    assert np.all(keys_for_mass(QUERY, KEY, mass=1, mask=mask) <= 4)
    query = QUERY.copy()
    query[0, 0, 0] = np.nan
    assert keys_for_mass(query, KEY, mass=0.5)[0, 0, 0] == -1


def test_a_window_is_the_mask_it_stands_for() -> None:
    query, value = QUERY, RNG.standard_normal((7, 2))
    distance = np.arange(7) - np.arange(5)[:, None] - 1
    by_window = {"window": (1, 2), "query_offset": 1, "chunk_size": 2}
    by_mask = {"mask": (distance >= -1) & (distance <= 2)}
    measures: dict[str, Callable[..., Any]] = {
        "kept_mass": partial(kept_mass, query, KEY, k=2),
        "error_bound": partial(error_bound, query, KEY, value, k=2),
        "keys_for_mass": partial(keys_for_mass, query, KEY, mass=0.7),
    }
    for name, measure in measures.items():
        expected = measure(**by_mask)
        np.testing.assert_allclose(measure(**by_window), expected, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("mass", [0, -0.5, 1.5])
def test_mass_is_checked(mass: float) -> None:
    with pytest.raises(ValueError, match="mass must be above 0 and at most 1, got"):
        keys_for_mass(QUERY, KEY, mass=mass)


@given(problem=attention_QND())
def test_the_sparse_matrix_times_the_values_is_the_output(problem: AttentionProblem) -> None:
    inputs, options, _ = problem.on(NUMPY)
    out, residuals = topk_attention_fwd(*inputs, **options)
    value = np.broadcast_to(problem.value, (*problem.lead, *problem.value.shape[-2:]))
    for head in np.ndindex(problem.lead):
        matrix = attention_csr(residuals, head=head)
        assert matrix.shape == (problem.queries, problem.keys)
        assert np.all(np.diff(matrix.indptr) <= problem.k)
        np.testing.assert_allclose(matrix @ value[head], out[head], atol=1e-12 * problem.size)


def test_a_sparse_matrix_needs_residuals_and_one_head() -> None:
    _, residuals = topk_attention_fwd(QUERY, KEY, KEY, k=2)
    with pytest.raises(ValueError, match=r"head must be a place in the leading axes \(2, 3\)"):
        attention_csr(residuals)
    with pytest.raises(TypeError, match="residuals must come from topk_attention_fwd, got tuple"):
        attention_csr(())  # type: ignore[arg-type]
