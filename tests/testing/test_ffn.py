"""`check_ffn` passes our own layers and catches wrong ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import topk_np
from topk_np.cli import main
from topk_np.testing import check_ffn


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["topk_ffn", "dense_ffn"])
def test_our_own_layers_pass_all_that_applies(name: str, dtype: str) -> None:
    pair = {end: getattr(topk_np, f"{name}_{end}") for end in ("fwd", "bwd")}
    report = check_ffn(getattr(topk_np, name), **pair, dtype=dtype, examples=8)
    assert report.passed, str(report)
    about_k = ["all_kept", "ties", "select"]
    assert report.names("not applicable") == (about_k if name == "dense_ffn" else [])


Array = np.ndarray


def relu(x: Array, keys: Array, values: Array, **options: Any) -> Any:
    return np.maximum(x @ keys.T, 0) @ values


def bias_of_each_unit(x: Array, keys: Array, values: Array, value_bias: Any = 0.0) -> Any:
    return relu(x, keys, values) + len(keys) * value_bias


def gate_and_keys_exchanged(x: Array, keys: Array, values: Array, gate: Any = None) -> Any:
    if gate is None:
        return relu(x, keys, values)
    return (np.maximum(x @ keys.T, 0) * (x @ gate.T)) @ values


def ties_beyond_k(x: Array, keys: Array, values: Array, k: int) -> Any:
    scores = x @ keys.T
    least = np.sort(scores, axis=-1)[..., -k:][..., :1]
    return np.where(scores >= least, np.maximum(scores, 0), 0) @ values


class Grads(NamedTuple):
    x: Array
    keys: Array
    values: Array


def without_the_slope(residuals: Any, dout: Array) -> Grads:
    grads = topk_np.dense_ffn_bwd(residuals, dout)
    return Grads(grads.x, 2 * grads.keys, grads.values)


@pytest.mark.parametrize(
    ("wrong", "caught_by", "passes"),
    [
        (bias_of_each_unit, "value_bias", "values"),
        (gate_and_keys_exchanged, "gate", "values"),
        (ties_beyond_k, "ties", "all_kept"),
    ],
)
def test_a_wrong_layer_is_caught_by_the_property_that_should(
    wrong: Any, caught_by: str, passes: str
) -> None:
    report = check_ffn(wrong, only=[caught_by, passes])
    assert report.names("failed") == [caught_by], str(report)
    assert len(report[caught_by].example.keys) <= 3


def test_a_wrong_gradient_is_caught_and_named() -> None:
    pair: dict[str, Any] = {"fwd": topk_np.dense_ffn_fwd, "bwd": without_the_slope}
    report = check_ffn(relu, **pair, only=["values", "gradients"])
    assert report.names("failed") == ["gradients"]
    assert "the gradient of keys" in report["gradients"].message


def test_the_command_checks_it(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", "topk_np:dense_ffn", "--kind", "ffn", "--examples", "5"]
    assert main([*command, "--only", "values", "gradients", "ties"]) == 0
    assert "PASSED (2 passed, 0 failed, 1 not applicable)" in capsys.readouterr().out
