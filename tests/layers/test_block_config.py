"""How a block is described, and the parameters it starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from topk_np.layers import BlockConfig
from topk_np.training import flatten


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"attention": "full"}, ValueError, r"attention must be one of 'dense', .* 'full'"),
        ({"attention": ["topk"]}, TypeError, r"attention must be one of 'dense', .* \(list\)"),
        ({"norm": "batch"}, ValueError, r"norm must be one of 'layer', 'rms', got 'batch'"),
        ({"dropout": 1.0}, ValueError, r"dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": "0.1"}, TypeError, r"dropout must be a real number"),
    ],
)
def test_what_cannot_be_is_refused(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        BlockConfig(**fields)


def test_parameters_are_drawn_within_glorots_bounds_biases_are_zero_and_norms_change_nothing() -> (
    None
):
    rng = np.random.default_rng(0)
    params = flatten(BlockConfig().init(rng, width=8, hidden=32, context_width=6, gated=True))
    shapes = {name: array.shape for name, array in params.items()}
    assert shapes["cross.key"] == shapes["cross.value"] == (8, 6)
    assert shapes["attention.key"] == shapes["cross.query"] == shapes["cross.out"] == (8, 8)
    assert shapes["ffn.keys"] == shapes["ffn.values"] == shapes["ffn.gate"] == (32, 8)
    for name, array in params.items():
        assert array.dtype == np.float32
        if array.ndim == 2:
            bound = np.sqrt(6 / sum(array.shape))
            assert 0.9 * bound < np.abs(array).max() <= bound
        else:
            assert set(array) == {float(name.endswith("norm.weight"))}
    again = flatten(BlockConfig().init(np.random.default_rng(0), width=8, hidden=32))
    assert np.array_equal(again["attention.query"], params["attention.query"])


def test_an_rms_norm_has_no_bias() -> None:
    rng = np.random.default_rng(0)
    params = BlockConfig(norm="rms").init(rng, width=4, hidden=4)
    assert list(params["ffn_norm"]) == list(params["attention_norm"]) == ["weight"]
