"""The linear layer: a product and its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import Backend
from tests.layers.trios import assert_half_precision_is_rounded_once, assert_layer
from tests.oracles import assert_close
from tests.strategies import arrays_of
from topk_np.layers import linear, linear_bwd, linear_fwd

leads = st.sampled_from([(), (3,), (0,), (2, 3), (2, 1, 2)])


@given(data=st.data(), lead=leads, sizes=st.tuples(*[st.integers(1, 4)] * 2), biased=st.booleans())
def test_it_is_the_product_of_each_row(
    xp: Backend, data: st.DataObject, lead: Any, sizes: Any, biased: bool
) -> None:
    features, units = sizes
    x = data.draw(arrays_of((*lead, features), whole=False))
    weight = data.draw(arrays_of((units, features), whole=False))
    bias = data.draw(arrays_of((units,), whole=False)) if biased else None
    expected = np.einsum("...e,fe->...f", x, weight) + (0 if bias is None else bias)
    assert_close(xp.to_numpy(linear(*xp.arrays(x, weight, bias))), expected, size=10.0)
    assert_layer(xp, linear_fwd, linear_bwd, x, weight, bias)


def test_half_precision_is_rounded_once() -> None:
    rng = np.random.default_rng(0)
    arrays = (rng.standard_normal(shape) for shape in ((50, 9), (7, 9), (7,)))
    assert_half_precision_is_rounded_once(linear_fwd, linear_bwd, *arrays)


def test_a_row_without_gradient_adds_nothing_even_if_it_is_nan() -> None:
    x = np.array([[1.0, 2.0], [np.nan, np.inf]])
    _, residuals = linear_fwd(x, np.eye(2), np.zeros(2))
    grads = linear_bwd(residuals, np.array([[1.0, 1.0], [0.0, 0.0]]))
    assert_close(grads.weight, np.array([[1.0, 2.0], [1.0, 2.0]]))


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ((np.ones((2, 3)), np.ones((2, 4))), ValueError, "weight must be equal to .* 3, got 4"),
        ((np.ones((2, 3)), np.ones(3)), ValueError, r"weight \(F, E\), got \(2, 3\) and \(3,\)"),
        ((np.ones(3), np.ones((2, 3)), np.ones(3)), ValueError, r"bias must have shape \(2,\)"),
        ((np.ones(3), np.ones((2, 3), "f4")), TypeError, "weight must have the dtype of x"),
    ],
)
def test_bad_input_is_named(arrays: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear(*arrays)


def test_other_residuals_are_refused() -> None:
    other: Any = 1
    with pytest.raises(TypeError, match="residuals must come from linear_fwd, got int"):
        linear_bwd(other, np.ones(3))
