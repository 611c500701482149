"""How much softmax mass top-k keeps."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import Backend
from topk_np.diagnostics import kept_mass

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
