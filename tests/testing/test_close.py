"""`assert_close`: what it lets pass, and what it says otherwise."""

from __future__ import annotations

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topk_np.testing import assert_close


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_the_tolerance_is_what_the_docstring_says(dtype: type) -> None:
    eps = float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    one: np.ndarray = np.ones(3, dtype)
    above = one.copy()
    above[1] += dtype(2 * eps)
    assert_close(above, one, length=1)
    above[1] += dtype(eps)
    with pytest.raises(AssertionError, match=r"at \(1,\)"):
        assert_close(above, one, length=1)
    assert_close(above, one, length=2)
    assert_close(above, one, length=1, size=1.5)


@given(st.permutations(range(40)), st.integers(0, 2**32 - 1))
def test_sums_in_another_order_are_close(order: list[int], seed: int) -> None:
    terms = np.random.default_rng(seed).standard_normal(40).astype(np.float32)
    one, other = np.zeros(1, np.float32), np.zeros(1, np.float32)
    for i, j in enumerate(order):
        one, other = one + terms[i], other + terms[j]
    assert_close(one, other, length=40, size=float(np.abs(terms).sum()))


def test_the_message_says_where_the_largest_difference_is() -> None:
    expected = np.arange(6.0).reshape(2, 3)
    actual = expected.copy()
    actual[0, 1] += 0.25
    actual[1, 2] -= 0.5
    with pytest.raises(AssertionError, match=r"5\.0e-01 at \(1, 2\).*got 4\.5, expected 5\.0"):
        assert_close(actual, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_to_be_in_the_same_places(value: float) -> None:
    odd = np.array([1.0, value])
    assert_close(odd, odd.copy())
    for other in (np.ones(2), np.array([1.0, -value]) if np.isinf(value) else np.zeros(2)):
        with pytest.raises(AssertionError, match=r"at \(1,\)|at \(0,\)"):
            assert_close(odd, other)


def test_library_device_dtype_and_shape_have_to_agree() -> None:
    x = np.ones(3)
    strict = array_api_strict.asarray(x)
    elsewhere = array_api_strict.asarray(x, device=array_api_strict.Device("device1"))
    for actual, expected, message in (
        (strict, x, "library is array_api_strict, expected numpy"),
        (elsewhere, strict, "device is"),
        (x.astype(np.float32), x, "dtype is float32, expected float64"),
        (x[:, None], x, r"shape is \(3, 1\), expected \(3,\)"),
    ):
        with pytest.raises(AssertionError, match=message):
            assert_close(actual, expected)
    assert_close(strict, strict)
    with pytest.raises(TypeError, match="floating dtype, got int64"):
        assert_close(np.ones(2, int), np.ones(2, int))
