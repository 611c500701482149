"""Embedding: rows of a table, whose gradients are added up where they were taken."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.backends import Backend
from tests.layers.trios import assert_half_precision_is_rounded_once, assert_layer
from tests.oracles import assert_close
from tests.strategies import seeds
from topk_np.layers import embedding, embedding_bwd, embedding_fwd


@given(
    tokens=hnp.arrays(
        st.sampled_from([np.uint8, np.int32, np.int64]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements=st.integers(0, 4),
    ),
    seed=seeds,
)
def test_each_token_gets_its_row_and_each_row_all_gradients(
    xp: Backend, tokens: np.ndarray, seed: int
) -> None:
    table = np.random.default_rng(seed).standard_normal((5, 3))
    out, residuals = embedding_fwd(*xp.arrays(tokens, table))
    assert_close(xp.to_numpy(out), table[tokens], size=0)
    dout = np.random.default_rng(seed + 1).standard_normal((*tokens.shape, 3))
    expected = np.zeros_like(table)
    np.add.at(expected, tokens, dout)
    assert_close(xp.to_numpy(embedding_bwd(residuals, xp.asarray(dout))), expected, size=10.0)
    assert_layer(xp, embedding_fwd, embedding_bwd, tokens, table, data=1)


def test_half_precision_is_added_up_in_single(monkeypatch: Any) -> None:
    monkeypatch.setattr(
        import_module("topk_np.layers.embedding"), "SCATTERED", 50
    )  # several blocks of tokens
    rng = np.random.default_rng(0)
    tokens, table = rng.integers(0, 5, 600), rng.standard_normal((5, 3))
    assert_half_precision_is_rounded_once(embedding_fwd, embedding_bwd, tokens, table)


@pytest.mark.parametrize(
    ("tokens", "table", "error", "message"),
    [
        (np.array([0, 3]), np.ones((3, 2)), ValueError, r"tokens must lie in 0 .. 2, got 0 .. 3"),
        (np.array([-1]), np.ones((3, 2)), ValueError, "got -1 .. -1"),
        (np.array([1.0]), np.ones((3, 2)), TypeError, "tokens must be integers, .* float64"),
        (np.array([1]), np.ones(3), ValueError, r"table must have shape \(T, D\), got \(3,\)"),
        ([1], np.ones((3, 2)), TypeError, "tokens must be an array"),
    ],
)
def test_bad_input_is_named(tokens: Any, table: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        embedding(tokens, table)
