"""Low-rank updates of a matrix: what they are at first, their sum, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import Backend
from tests.layers.trios import assert_layer
from tests.oracles import assert_close
from tests.strategies import arrays_of
from topk_np.training import lora, lora_bwd, lora_fwd, lora_init


@given(
    data=st.data(), sizes=st.tuples(*[st.integers(1, 4)] * 3), scale=st.sampled_from([0.5, 1.0, 2])
)
def test_it_adds_the_product_of_the_factors_and_its_gradients_are_slopes(
    xp: Backend, data: st.DataObject, sizes: Any, scale: float
) -> None:
    rows, width, rank = sizes
    weight, a, b = (
        data.draw(arrays_of(shape, whole=False))
        for shape in ((rows, width), (rank, width), (rows, rank))
    )
    expected = weight + scale * np.einsum("fr,re->fe", b, a)
    assert_close(xp.to_numpy(lora(*xp.arrays(weight, a, b), scale=scale)), expected, size=10.0)
    assert_layer(xp, lora_fwd, lora_bwd, weight, a, b, scale=scale)


def test_at_first_nothing_changes_and_only_b_has_a_gradient(xp: Backend) -> None:
    weight = np.random.default_rng(1).standard_normal((5, 4))
    a, b = lora_init(xp.asarray(weight), np.random.default_rng(0), rank=2)
    merged, residuals = lora_fwd(xp.asarray(weight), a, b, scale=3.0)
    assert np.array_equal(xp.to_numpy(merged), weight)
    grads = lora_bwd(residuals, xp.asarray(np.ones((5, 4))))
    assert not np.any(xp.to_numpy(grads.a))
    assert np.all(xp.to_numpy(grads.b) != 0)


def test_the_factors_are_drawn_from_the_generator_alone_with_the_variance_of_the_rows() -> None:
    weight = np.ones((3, 4000), np.float32)
    a, b = lora_init(weight, np.random.default_rng(7), rank=4)
    again, _ = lora_init(weight, np.random.default_rng(7), rank=4)
    assert np.array_equal(a, again)
    assert a.dtype == b.dtype == np.float32
    assert abs(float(np.var(a)) * 4000 - 1) < 0.1


def test_half_precision_has_factors_in_float32() -> None:
    weight = np.ones((3, 4), np.float16)
    a, b = lora_init(weight, np.random.default_rng(0), rank=1)
    assert a.dtype == b.dtype == np.float32
    merged, residuals = lora_fwd(weight, a, b + 1e-4, scale=1.0)
    assert merged.dtype == np.float16
    grads = lora_bwd(residuals, np.ones_like(merged))
    assert [grad.dtype for grad in grads] == [np.float16, np.float32, np.float32]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.ones((3, 4)), np.ones((2, 3)), np.ones((3, 2))), r"\(rank, 4\) and \(3, rank\), got"),
        ((np.ones((3, 4)), np.ones((2, 4)), np.ones((3, 1))), r"got \(2, 4\) and \(3, 1\)"),
    ],
)
def test_factors_of_other_shapes_are_refused(arrays: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lora(*arrays, scale=1.0)


def test_only_matrices_have_low_rank_updates() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"weight must have shape \(F, E\), got \(3,\)"):
        lora_init(np.ones(3), rng, rank=1)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        lora_init(np.ones((3, 3)), rng, rank=0)
