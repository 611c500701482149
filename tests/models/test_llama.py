"""The Llama forward pass against the reference implementation."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from tests.backends import NUMPY, Backend
from tests.models.tiny import CONFIG, EXPECTED, PARAMS, TENSORS, interleaved, with_layout
from topk_np import dense_attention, topk_attention_fwd
from topk_np.models import llama, scoring
from topk_np.models.checkpoint import config_from_json, params_from_tensors
from topk_np.models.llama import LlamaLayer, LlamaParams, forward, logits
from topk_np.models.scoring import next_tokens

TOKENS = EXPECTED["input_ids"]
LENGTH, UNITS = TOKENS.shape[1], CONFIG["intermediate_size"]


def assert_agrees(actual: np.ndarray, expected: np.ndarray) -> None:
    """Assert agreement within 1e-4 of the largest expected value."""
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= 1e-4 * np.max(np.abs(expected))


def params_on(xp: Backend, params: LlamaParams = PARAMS) -> LlamaParams:
    """A model on a backend, by default the tiny one."""

    def move(layer: LlamaLayer) -> LlamaLayer:
        return LlamaLayer(**{f.name: xp.asarray(getattr(layer, f.name)) for f in fields(layer)})

    embedding, norm, head = xp.arrays(params.embedding, params.norm, params.head)
    return LlamaParams(params.config, embedding, tuple(map(move, params.layers)), norm, head)


@pytest.mark.parametrize(
    "options",
    [{}, {"attention_k": LENGTH}, {"attention_k": 1000}, {"ffn_k": UNITS}, {"workers": 2}],
    ids=str,
)
def test_hidden_states_logits_and_loss_are_those_of_the_reference(
    xp: Backend, options: dict[str, Any]
) -> None:
    params, tokens = params_on(xp), xp.asarray(TOKENS)
    hidden = forward(params, tokens, **options)
    assert_agrees(xp.to_numpy(hidden), EXPECTED["last_hidden"])
    assert_agrees(xp.to_numpy(logits(params, hidden)), EXPECTED["logits"])
    loss = xp.to_numpy(next_tokens(params, hidden, tokens).loss)
    assert_agrees(np.mean(loss, keepdims=True)[0], EXPECTED["loss"])


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunks_of_attention_and_of_the_vocabulary_change_only_rounding(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(llama, "CHUNK", chunk)
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    hidden = forward(PARAMS, TOKENS)
    assert_agrees(hidden, EXPECTED["last_hidden"])
    seen = next_tokens(PARAMS, hidden, TOKENS)
    assert_agrees(np.mean(seen.loss, keepdims=True)[0], EXPECTED["loss"])
    assert np.array_equal(seen.best, np.argmax(EXPECTED["logits"], axis=-1)[:, :-1])


@pytest.mark.parametrize("k", [1, 3, 8])
def test_topk_attention_is_dense_attention_restricted_to_the_kept_keys(k: int) -> None:
    def restricted(query: Any, key: Any, value: Any) -> Any:
        _, residuals = topk_attention_fwd(query, key, value, k=k, is_causal=True)
        kept = np.zeros((*query.shape[:-1], key.shape[-2] + 1), bool)
        np.put_along_axis(kept, residuals.indices, True, axis=-1)  # unused slots: the last column
        return dense_attention(query, key, value, mask=kept[..., :-1])

    assert_agrees(
        forward(PARAMS, TOKENS, attention_k=k), forward(PARAMS, TOKENS, attention=restricted)
    )


def test_small_k_changes_the_result() -> None:
    dense = forward(PARAMS, TOKENS)
    for other in (forward(PARAMS, TOKENS, attention_k=2), forward(PARAMS, TOKENS, ffn_k=2)):
        assert np.max(np.abs(other - dense)) > 1e-3


def test_feed_forward_keeps_the_units_of_the_largest_activation() -> None:
    layer = PARAMS.layers[0]
    x = EXPECTED["last_hidden"][0]
    gate = x @ layer.gate.T
    h = gate / (1 + np.exp(-gate)) * (x @ layer.up.T)
    least = np.sort(np.abs(h), axis=-1)[:, -5, None]
    expected = np.where(np.abs(h) >= least, h, 0) @ layer.down
    assert_agrees(llama.gated_ffn(layer, x, k=5), expected)


def test_every_layer_keeps_its_own_k(monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(name: str) -> list[int | None]:
        ks, function = [], getattr(llama, name)

        def watched(*arrays: Any, k: int | None, **options: Any) -> Any:
            ks.append(k)
            return function(*arrays, k=k, **options)

        monkeypatch.setattr(llama, name, watched)
        return ks

    attention, ffn = watch("causal_attention"), watch("gated_ffn")
    forward(PARAMS, TOKENS, attention_k={0: None, "rest": 3}, ffn_k=[9, 4])
    assert (attention, ffn) == ([None, 3], [9, 4])


def test_a_sequence_is_computed_as_it_is_in_a_batch() -> None:
    assert_agrees(forward(PARAMS, TOKENS[1]), EXPECTED["last_hidden"][1])


def test_a_position_does_not_depend_on_later_ones() -> None:
    assert_agrees(forward(PARAMS, TOKENS[:, :17]), EXPECTED["last_hidden"][:, :17])


def test_rotary_layouts_agree_once_the_weights_are_reordered() -> None:
    layers = tuple(
        replace(
            layer,
            query=interleaved(layer.query, CONFIG["num_attention_heads"]),
            key=interleaved(layer.key, CONFIG["num_key_value_heads"]),
        )
        for layer in PARAMS.layers
    )
    params = with_layout(replace(PARAMS, layers=layers), "interleaved")
    assert_agrees(forward(params, TOKENS), EXPECTED["last_hidden"])


def test_attention_is_called_once_a_layer_with_grouped_heads() -> None:
    shapes = []

    def attention(query: Any, key: Any, value: Any) -> Any:
        shapes.append((query.shape, key.shape, value.shape))
        return llama.causal_attention(query, key, value, k=None)

    assert_agrees(forward(PARAMS, TOKENS, attention=attention), EXPECTED["last_hidden"])
    grouped = (2, 2, 1, LENGTH, 8)
    assert shapes == [((2, 2, 2, LENGTH, 8), grouped, grouped)] * CONFIG["num_hidden_layers"]


def test_slices_of_the_hidden_states_give_the_losses_of_their_positions() -> None:
    hidden = forward(PARAMS, TOKENS)
    whole = next_tokens(PARAMS, hidden, TOKENS)
    end = next_tokens(PARAMS, hidden[:, -4:], TOKENS[:, -4:])
    np.testing.assert_allclose(end.loss, whole.loss[:, -3:], rtol=1e-5)
    assert np.array_equal(end.best, whole.best[:, -3:])


def test_an_output_layer_of_its_own_is_used() -> None:
    config = config_from_json(CONFIG)
    head = TENSORS["model.embed_tokens.weight"][::-1]
    params = params_from_tensors(config, TENSORS | {"lm_head.weight": head}, style="safetensors")
    hidden = forward(params, TOKENS)
    assert_agrees(logits(params, hidden), EXPECTED["logits"][..., ::-1])


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (np.zeros(3), TypeError, "tokens must be integers, got dtype float64"),
        (np.array([0, 96]), ValueError, r"tokens must lie in 0 \.\. 95, got 0 \.\. 96"),
        (np.array([-1, 5]), ValueError, r"tokens must lie in 0 \.\. 95, got -1 \.\. 5"),
        (np.array([], np.int32), ValueError, r"tokens must have shape \(\.\.\., Q\).*got \(0,\)"),
        (np.array(3), ValueError, r"tokens must have shape \(\.\.\., Q\).*got \(\)"),
    ],
)
def test_tokens_are_checked(tokens: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        forward(PARAMS, tokens)


def test_a_loss_needs_two_positions() -> None:
    hidden = forward(PARAMS, TOKENS[:, :1])
    with pytest.raises(
        ValueError, match=r"tokens must have at least 2 positions, got shape \(2, 1\)"
    ):
        next_tokens(PARAMS, hidden, TOKENS[:, :1])


def test_attention_and_attention_k_exclude_each_other() -> None:
    with pytest.raises(
        ValueError, match="attention_k must be None where attention is given, got 3"
    ):
        forward(PARAMS, TOKENS, attention=lambda q, k, v: v, attention_k=3)


def test_memory_is_not_quadratic_in_length() -> None:
    rng = np.random.default_rng(0)
    tokens = NUMPY.asarray(rng.integers(96, size=3000))
    tracemalloc.start()
    forward(PARAMS, tokens)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 4  # one head's scores
