"""Dropout: by place and seed alone, as often as the rate says, and the same on the way back."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import Backend
from tests.layers.test_linear import leads
from tests.layers.trios import assert_layer
from tests.oracles import threefry_by_ints
from tests.strategies import seeds
from topk_np.layers import dropout, dropout_bwd, dropout_fwd, fold_seed

rates = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1 - 1e-9])


def kept_by_ints(shape: tuple[int, ...], rate: float, seed: int) -> np.ndarray:
    """Which entries are kept, draw by draw."""
    level = min(round(rate * 2**16), 2**16 - 1)
    key = seed % 2**32, seed >> 32
    kept = np.zeros(shape, bool)
    rows = kept.reshape(-1, shape[-1]) if kept.size else kept.reshape(0, shape[-1])
    counters = -(-shape[-1] // 4)
    for i in range(len(rows)):
        words = [threefry_by_ints(key, (i, j)) for j in range(counters)]
        halves = [
            (w >> s) % 2**16
            for part in (0, 1)
            for s in (16, 0)
            for w in (pair[part] for pair in words)
        ]
        rows[i] = [(half + 2**15) % 2**16 >= level for half in halves[: shape[-1]]]
    return kept


@given(lead=leads, width=st.integers(1, 9), rate=rates, seed=seeds.map(lambda n: n * 2**20 + n))
def test_an_entry_is_kept_by_its_place_and_the_seed(
    xp: Backend, lead: Any, width: int, rate: float, seed: int
) -> None:
    x = np.random.default_rng(0).standard_normal((*lead, width))
    level = min(round(rate * 2**16), 2**16 - 1) / 2**16
    expected = np.where(kept_by_ints(x.shape, rate, seed), x / (1 - level), 0.0)
    out = xp.to_numpy(dropout(xp.asarray(x), rate=rate, seed=seed))
    np.testing.assert_allclose(out, expected, rtol=1e-14)
    assert_layer(xp, dropout_fwd, dropout_bwd, x, rate=rate, seed=seed)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_mean_is_kept_and_neighbours_are_independent(rate: float) -> None:
    kept = dropout(np.ones((400, 403), np.float32), rate=rate, seed=7) > 0
    allowed = 5 * np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < allowed
    for other in (np.roll(kept, 1, 0), np.roll(kept, 1, 1), np.roll(kept, 101, 1)):
        assert abs((kept & other).mean() - (1 - rate) ** 2) < allowed


def test_blocks_of_rows_change_nothing(monkeypatch: Any) -> None:
    x = np.ones((40, 9), np.float16)
    whole = dropout(x, rate=0.5, seed=1)
    monkeypatch.setattr(import_module("topk_np.layers.dropout"), "DRAWN", 8)
    assert np.array_equal(dropout(x, rate=0.5, seed=1), whole)
    assert whole.dtype == np.float16


def test_a_dropped_entry_contributes_nothing_even_if_it_is_nan() -> None:
    out = dropout(np.full(64, np.nan), rate=0.5, seed=0)
    assert set(np.isnan(out)) == {True, False}
    assert not np.any(out[~np.isnan(out)])


def test_seeds_are_made_of_seeds_and_numbers() -> None:
    made = {fold_seed(seed, i, j) for seed in (0, 2**64 - 1) for i in range(9) for j in range(9)}
    assert len(made) == 2 * 81
    assert all(0 <= seed < 2**64 for seed in made)
    low, high = threefry_by_ints((5, 1), (7, 3))
    assert fold_seed(2**32 + 5, 3 * 2**32 + 7) == low + high * 2**32
    assert fold_seed(5) == 5
    with pytest.raises(ValueError, match=r"numbers\[1\] must be at least 0, got -1"):
        fold_seed(0, 1, -1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rate": 1.0}, ValueError, "rate must be at least 0 and below 1, got 1.0"),
        ({"rate": None}, TypeError, "rate must be a real number"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 2**64}, ValueError, "seed must be below"),
    ],
)
def test_bad_input_is_named(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dropout(np.ones(3), **{"rate": 0.5, "seed": 0, **options})
