"""Layer norm and RMS norm: rows of known mean and length, and slopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import Backend
from tests.layers.test_linear import leads
from tests.layers.trios import assert_half_precision_is_rounded_once, assert_layer
from tests.oracles import assert_close, assert_same_bits
from tests.strategies import seeds
from topk_np.layers import (
    layer_norm,
    layer_norm_bwd,
    layer_norm_fwd,
    rms_norm,
    rms_norm_bwd,
    rms_norm_fwd,
)
from topk_np.layers.norms import init_norm, norm_bwd, norm_fwd


@given(lead=leads, width=st.integers(1, 6), eps=st.sampled_from([0.1, 1e-2]), seed=seeds)
def test_rows_are_scaled_to_unit_size(
    xp: Backend, lead: Any, width: int, eps: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = 2 + rng.standard_normal((*lead, width))
    weight, bias = rng.standard_normal((2, width))

    root = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    assert_close(
        xp.to_numpy(rms_norm(*xp.arrays(x, weight), eps=eps)), x / root * weight, size=10.0
    )
    assert_layer(xp, rms_norm_fwd, rms_norm_bwd, x, weight, eps=eps)

    centred = x - x.mean(axis=-1, keepdims=True)
    root = np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    for shift in (bias, None):
        found = xp.to_numpy(layer_norm(*xp.arrays(x, weight, shift), eps=eps))
        expected = centred / root * weight + (0 if shift is None else shift)
        assert_close(found, expected, size=10.0)
        assert_layer(xp, layer_norm_fwd, layer_norm_bwd, x, weight, shift, eps=eps)


def test_half_precision_is_rounded_once() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((40, 9)), *rng.standard_normal((2, 9))
    assert_half_precision_is_rounded_once(layer_norm_fwd, layer_norm_bwd, x, weight, bias)
    assert_half_precision_is_rounded_once(rms_norm_fwd, rms_norm_bwd, x, weight)


def test_a_row_keeps_two_numbers_of_layer_norm_and_one_of_rms_norm() -> None:
    x, weight = np.ones((6, 50), np.float32), np.ones(50, np.float32)
    assert layer_norm_fwd(x, weight)[1].nbytes == 2 * 6 * 4
    assert rms_norm_fwd(x, weight)[1].nbytes == 6 * 4


@pytest.mark.parametrize("function", [layer_norm, rms_norm])
def test_bad_input_is_named(function: Any) -> None:
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"weight must have shape \(3,\), that of a row of x"):
        function(x, np.ones(2))
    with pytest.raises(ValueError, match="eps must not be negative, got -1"):
        function(x, np.ones(3), eps=-1)
    with pytest.raises(TypeError, match="eps must be a real number"):
        function(x, np.ones(3), eps="small")


@pytest.mark.parametrize("eps", [None, 0.5])
@pytest.mark.parametrize("name", ["layer", "rms"])
def test_a_norm_by_name_is_that_norm_with_its_own_eps_unless_one_is_given(
    name: str, eps: float | None
) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    params = {key: array + 0.5 for key, array in init_norm(name, 4).items()}
    options = {} if eps is None else {"eps": eps}
    fwd: Any = layer_norm_fwd if name == "layer" else rms_norm_fwd
    bwd: Any = layer_norm_bwd if name == "layer" else rms_norm_bwd
    wanted, kept = fwd(x, *params.values(), **options)
    out, residuals = norm_fwd(name, x, params, eps=eps)
    assert_same_bits(out, wanted)
    dx, named = norm_bwd(residuals, out)
    assert list(named) == list(params)
    for one, other in zip((dx, *named.values()), bwd(kept, out), strict=True):
        assert_same_bits(one, other)
