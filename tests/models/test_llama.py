"""The Llama forward pass against the reference implementation."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.backends import NUMPY, Backend
from tests.models.tiny import CONFIG, EXPECTED, MODEL, interleaved, with_layout
from topk_np import dense_attention, topk_attention_fwd
from topk_np.models import llama, scoring, sublayers
from topk_np.models.llama import Llama, causal_attention, forward, logits
from topk_np.models.scoring import next_tokens
from topk_np.models.sublayers import Units, ffn_fwd
from topk_np.training import tree_map

TOKENS = EXPECTED["input_ids"]
LENGTH, UNITS = TOKENS.shape[1], CONFIG["intermediate_size"]


def assert_agrees(actual: np.ndarray, expected: np.ndarray) -> None:
    """Assert agreement within 1e-4 of the largest expected value."""
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= 1e-4 * np.max(np.abs(expected))


def model_on(xp: Backend, model: Llama = MODEL, **changes: Any) -> Llama:
    """A model on a backend, by default the tiny one, with a k or other changes."""
    return replace(model, params=tree_map(xp.asarray, model.params), **changes)


def with_k(**changes: Any) -> Llama:
    """The tiny model with a k, or with other changes."""
    return replace(MODEL, **changes)


@pytest.mark.parametrize(
    "options",
    [{}, {"attention_k": LENGTH}, {"attention_k": 1000}, {"ffn_k": UNITS}],
    ids=str,
)
def test_hidden_states_logits_and_loss_are_those_of_the_reference(
    xp: Backend, options: dict[str, Any]
) -> None:
    params, tokens = model_on(xp, **options), xp.asarray(TOKENS)
    hidden = forward(params, tokens, workers=2)
    assert_agrees(xp.to_numpy(hidden), EXPECTED["last_hidden"])
    assert_agrees(xp.to_numpy(logits(params, hidden)), EXPECTED["logits"])
    loss = xp.to_numpy(next_tokens(params, hidden, tokens).loss)
    assert_agrees(np.mean(loss, keepdims=True)[0], EXPECTED["loss"])


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunks_of_attention_and_of_the_vocabulary_change_only_rounding(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    for module in (llama, sublayers, scoring):
        monkeypatch.setattr(module, "CHUNK", chunk)
    hidden = forward(MODEL, TOKENS)
    assert_agrees(hidden, EXPECTED["last_hidden"])
    seen = next_tokens(MODEL, hidden, TOKENS)
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
        forward(with_k(attention_k=k), TOKENS), forward(MODEL, TOKENS, attention=restricted)
    )


def test_small_k_changes_the_result() -> None:
    dense = forward(MODEL, TOKENS)
    for other in (forward(with_k(attention_k=2), TOKENS), forward(with_k(ffn_k=2), TOKENS)):
        assert np.max(np.abs(other - dense)) > 1e-3


def test_feed_forward_keeps_the_units_of_the_largest_activation() -> None:
    layer = MODEL.params["layers"]["0"]["ffn"]
    x = EXPECTED["last_hidden"][0]
    gate = x @ layer["gate"].T
    h = gate / (1 + np.exp(-gate)) * (x @ layer["keys"].T)
    least = np.sort(np.abs(h), axis=-1)[:, -5, None]
    expected = np.where(np.abs(h) >= least, h, 0) @ layer["values"]
    assert_agrees(ffn_fwd(x, layer, Units("silu", 5))[0], expected)


def test_every_layer_keeps_its_own_k(monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(module: Any, name: str) -> list[int]:
        ks, function = [], getattr(module, name)

        def watched(*arrays: Any, k: int, **options: Any) -> Any:
            ks.append(k)
            return function(*arrays, k=k, **options)

        monkeypatch.setattr(module, name, watched)
        return ks

    attention, ffn = watch(llama, "topk_attention"), watch(sublayers, "feed_forward_fwd")
    forward(with_k(attention_k={0: None, "rest": 3}, ffn_k=[9, 4]), TOKENS)
    assert (attention, ffn) == ([3], [9, 4])


def test_a_sequence_is_computed_as_it_is_in_a_batch() -> None:
    assert_agrees(forward(MODEL, TOKENS[1]), EXPECTED["last_hidden"][1])


def test_a_position_does_not_depend_on_later_ones() -> None:
    assert_agrees(forward(MODEL, TOKENS[:, :17]), EXPECTED["last_hidden"][:, :17])


def test_rotary_layouts_agree_once_the_weights_are_reordered() -> None:
    layers = {}
    for name, layer in MODEL.params["layers"].items():
        own = layer["attention"]
        query = interleaved(own["query"], CONFIG["num_attention_heads"])
        key = interleaved(own["key"], CONFIG["num_key_value_heads"])
        layers[name] = {**layer, "attention": {**own, "query": query, "key": key}}
    model = with_layout(replace(MODEL, params={**MODEL.params, "layers": layers}), "interleaved")
    assert_agrees(forward(model, TOKENS), EXPECTED["last_hidden"])


def test_attention_is_called_once_a_layer_with_grouped_heads() -> None:
    shapes = []

    def attention(query: Any, key: Any, value: Any) -> Any:
        shapes.append((query.shape, key.shape, value.shape))
        return causal_attention(query, key, value, k=None)

    assert_agrees(forward(MODEL, TOKENS, attention=attention), EXPECTED["last_hidden"])
    grouped = (2, 2, 1, LENGTH, 8)
    assert shapes == [((2, 2, 2, LENGTH, 8), grouped, grouped)] * CONFIG["num_hidden_layers"]


def test_slices_of_the_hidden_states_give_the_losses_of_their_positions() -> None:
    hidden = forward(MODEL, TOKENS)
    whole = next_tokens(MODEL, hidden, TOKENS)
    end = next_tokens(MODEL, hidden[:, -4:], TOKENS[:, -4:])
    np.testing.assert_allclose(end.loss, whole.loss[:, -3:], rtol=1e-5)
    assert np.array_equal(end.best, whole.best[:, -3:])


def test_an_output_layer_of_its_own_is_used() -> None:
    model = with_k(params={**MODEL.params, "head": MODEL.params["embedding"][::-1]})
    hidden = forward(model, TOKENS)
    assert_agrees(logits(model, hidden), EXPECTED["logits"][..., ::-1])


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
        forward(MODEL, tokens)


def test_a_loss_needs_two_positions() -> None:
    hidden = forward(MODEL, TOKENS[:, :1])
    with pytest.raises(
        ValueError, match=r"tokens must have at least 2 positions, got shape \(2, 1\)"
    ):
        next_tokens(MODEL, hidden, TOKENS[:, :1])


def test_attention_and_attention_k_exclude_each_other() -> None:
    with pytest.raises(
        ValueError, match="attention_k must be None where attention is given, got 3"
    ):
        forward(with_k(attention_k=3), TOKENS, attention=lambda q, k, v: v)


def test_memory_is_not_quadratic_in_length() -> None:
    rng = np.random.default_rng(0)
    tokens = NUMPY.asarray(rng.integers(96, size=3000))
    tracemalloc.start()
    forward(MODEL, tokens)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 4  # one head's scores
