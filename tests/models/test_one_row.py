"""Products of a single row, shared by threads, against those of the layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.models.golden import DATA, expected
from tests.models.tiny import EXPECTED, MODEL
from tests.test_workers import blas_threads, two_blas_threads
from topk_np import dense_ffn
from topk_np.layers import linear
from topk_np.models import decode, llama, load_model, one_row, t5, t5_generate
from topk_np.models.one_row import one_row_ffn, one_row_linear

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 1, 24), np.float32)
KEYS, GATE, VALUES = RNG.standard_normal((3, 50, 24), np.float32)
KEY_BIAS = RNG.standard_normal(50, np.float32)
VALUE_BIAS = RNG.standard_normal(24, np.float32)


@pytest.fixture(params=[1, 3], ids=["whole", "shared"], autouse=True)
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave matrices whole, or have them cut into parts however small they are."""
    monkeypatch.setattr(one_row, "MOST_PARTS", request.param)
    monkeypatch.setattr(one_row, "LEAST_PART", 1)


@pytest.mark.parametrize(
    "others",
    [{}, {"gate": GATE}, {"key_bias": KEY_BIAS, "value_bias": VALUE_BIAS}],
    ids=lambda others: "+".join(others) or "plain",
)
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_one_row_has_the_output_of_the_layer(activation: str, others: dict[str, Any]) -> None:
    got = one_row_ffn(X, {"keys": KEYS, "values": VALUES, **others}, activation)
    wanted = dense_ffn(X, KEYS, VALUES, activation=activation, **others)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert got.dtype == wanted.dtype


def test_half_precision_is_computed_in_float32() -> None:
    x, keys, gate, values = (a.astype(np.float16) for a in (X, KEYS, GATE, VALUES))
    params = {"keys": keys, "gate": gate, "values": values}
    wide = {name: array.astype(np.float32) for name, array in params.items()}
    exact = one_row_ffn(x.astype(np.float32), wide, "silu")
    assert np.array_equal(one_row_ffn(x, params, "silu"), exact.astype(np.float16))
    exact = one_row_linear(x.astype(np.float32), wide["keys"])
    assert np.array_equal(one_row_linear(x, keys), exact.astype(np.float16))


def test_one_row_has_the_output_of_the_linear_layer() -> None:
    np.testing.assert_allclose(one_row_linear(X, KEYS), linear(X, KEYS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("workers", [2, 5])
def test_threads_change_nothing(workers: int) -> None:
    params = {"keys": KEYS, "values": VALUES, "gate": GATE}
    alone = one_row_ffn(X, params, "silu", 1), one_row_linear(X, KEYS, 1)
    others = one_row_ffn(X, params, "silu", workers), one_row_linear(X, KEYS, workers)
    for one, other in zip(alone, others, strict=True):
        assert np.array_equal(one, other)


def test_blas_has_one_thread_while_a_token_is_computed_and_its_own_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    during: list[set[int]] = []

    def watch(module: Any, name: str) -> None:
        function = getattr(module, name)

        def watched(*arrays: Any, **options: Any) -> Any:
            during.append(blas_threads())
            return function(*arrays, **options)

        monkeypatch.setattr(module, name, watched)

    watch(llama, "one_row_linear")
    watch(t5, "logits")
    model = load_model(DATA / "t5_relu")
    tokens = expected("t5_relu")["input_ids"][0]
    for steps in (
        decode.generate(MODEL, EXPECTED["prompt"][0], count=3),
        t5_generate.generate(model, tokens, count=3, stop=()),
    ):
        during.clear()
        with two_blas_threads():
            for _ in steps:
                assert blas_threads() == {2}
        assert during
        assert set().union(*during) == {1}
