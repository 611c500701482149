"""Pooling: the mean over what is allowed, or the first of it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import Backend
from tests.layers.trios import assert_half_precision_is_rounded_once, assert_layer
from tests.oracles import assert_close
from tests.strategies import seeds
from topk_np.layers import pool, pool_bwd, pool_fwd


@given(
    lead=st.sampled_from([(), (2,), (2, 3)]),
    length=st.integers(0, 5),
    how=st.sampled_from(["mean", "first"]),
    masked=st.sampled_from(["not", "shared", "each", "flag"]),
    seed=seeds,
)
def test_it_is_the_mean_or_the_first_of_the_allowed_positions(
    xp: Backend, lead: Any, length: int, how: Literal["mean", "first"], masked: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*lead, length, 3))
    shape = {"shared": (length,), "flag": (1,)}.get(masked, (*lead, length))
    mask = None if masked == "not" else rng.random(shape) < 0.6
    allowed = np.broadcast_to(True if mask is None else mask, (*lead, length))
    expected = np.zeros((*lead, 3))
    for place in np.ndindex(lead):
        rows = x[place][allowed[place]]
        if len(rows):
            expected[place] = rows.mean(axis=0) if how == "mean" else rows[0]
    options: Any = {"mask": mask, "how": how}
    out = pool(xp.asarray(x), **xp.options(options))
    assert_close(xp.to_numpy(out), expected)
    assert_layer(xp, pool_fwd, pool_bwd, x, **options)


def test_what_is_not_allowed_contributes_nothing_even_if_it_is_nan() -> None:
    x = np.array([[np.nan, np.inf], [1.0, 2.0]])
    hows: tuple[Literal["mean", "first"], ...] = ("mean", "first")
    for how in hows:
        out, residuals = pool_fwd(x, mask=np.array([False, True]), how=how)
        assert_close(out, np.array([1.0, 2.0]))
        assert_close(pool_bwd(residuals, out), np.array([[0.0, 0.0], [1.0, 2.0]]))


def test_half_precision_is_rounded_once() -> None:
    x = np.random.default_rng(0).standard_normal((2, 30, 9))
    assert_half_precision_is_rounded_once(pool_fwd, pool_bwd, x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": np.ones(3)}, TypeError, "mask must be boolean, got an array of dtype float64"),
        ({"mask": np.ones(2, bool)}, ValueError, r"mask must broadcast to \(..., N\), here \(3,\)"),
        ({"how": "last"}, ValueError, "how must be one of 'mean', 'first', got 'last'"),
    ],
)
def test_bad_input_is_named(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pool(np.ones((3, 2)), **options)
