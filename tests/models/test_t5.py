"""T5 v1.0 and v1.1 against the reference; generation against the full pass."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.backends import Backend
from tests.models.golden import DATA, assert_near, expected
from topk_np.models import load_model, t5
from topk_np.models.t5 import T5
from topk_np.models.t5_generate import beam_search, generate
from topk_np.training import tree_map

NAMES = ("t5_relu", "t5_gated_gelu")
MODELS: dict[str, T5] = {name: load_model(DATA / name) for name in NAMES}
EXPECTED = {name: expected(name) for name in NAMES}
COVERING = {
    "attention_k": {"encoder": 37, "decoder": [11, None], "cross": 37},
    "ffn_k": {"encoder": 64, "decoder": {0: 64, "rest": None}},
}


def mask_of(name: str) -> np.ndarray:
    return np.asarray(EXPECTED[name]["attention_mask"] == 1)


@pytest.mark.parametrize("ks", [{}, COVERING], ids=["dense", "covering k"])
@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_and_logits_are_those_of_the_reference(
    xp: Backend, name: str, ks: dict[str, Any]
) -> None:
    wanted, loaded = EXPECTED[name], MODELS[name]
    model = replace(loaded, params=tree_map(xp.asarray, loaded.params), **ks)
    tokens, outputs, mask = xp.arrays(
        wanted["input_ids"], wanted["decoder_input_ids"], mask_of(name)
    )
    encoded = t5.encode(model, tokens, mask=mask)
    assert_near(xp.to_numpy(encoded), wanted["encoder_last_hidden"])
    hidden = t5.decode(model, outputs, encoded, mask=mask)
    assert_near(xp.to_numpy(t5.logits(model, hidden)), wanted["logits"])


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_shifted_right(name: str) -> None:
    labels = EXPECTED[name]["labels"]
    got = t5.shift_right(MODELS[name], labels)
    assert not np.any(got[:, 0])
    assert np.array_equal(got[:, 1:], labels[:, :-1])
    assert t5.shift_right(MODELS[name], np.array([5, -100, -100])).tolist() == [0, 5, 0]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_generation_is_that_of_the_reference(xp: Backend, name: str) -> None:
    wanted, loaded = EXPECTED[name]["generated"], MODELS[name]
    model = replace(loaded, params=tree_map(xp.asarray, loaded.params))
    tokens, mask = xp.arrays(EXPECTED[name]["input_ids"], mask_of(name))
    steps = list(generate(model, tokens, mask=mask, count=wanted.shape[1] - 1))
    got = np.stack([xp.to_numpy(step) for step in steps], axis=-1)
    assert np.array_equal(got, wanted[:, 1:])


@pytest.mark.parametrize("part", ["encoder", "decoder", "cross"])
def test_each_part_keeps_its_own_k(part: str) -> None:
    wanted, model = EXPECTED["t5_relu"], MODELS["t5_relu"]

    def run(model: T5) -> tuple[np.ndarray, np.ndarray]:
        encoded = t5.encode(model, wanted["input_ids"], mask=mask_of("t5_relu"))
        return encoded, t5.decode(model, wanted["decoder_input_ids"], encoded)

    dense, topk = run(model), run(replace(model, attention_k={part: 2}))
    assert np.array_equal(dense[0], topk[0]) == (part != "encoder")
    assert not np.array_equal(dense[1], topk[1])


def test_one_beam_is_greedy_and_scores_are_log_probabilities() -> None:
    name = "t5_gated_gelu"
    model, tokens = MODELS[name], EXPECTED[name]["input_ids"][1]
    mask = mask_of(name)[1]
    (only,) = beam_search(model, tokens, mask=mask, beams=1, count=6, length_penalty=0.0)
    assert np.array_equal(only.tokens, EXPECTED[name]["generated"][1, 1:7])
    for beam in beam_search(model, tokens, mask=mask, beams=3, count=6, stop=[13]):
        total = log_probability(model, tokens, mask, beam.tokens)
        assert abs(beam.score - total / len(beam.tokens)) < 1e-4


def test_a_wide_beam_finds_the_most_probable_outputs() -> None:
    name, few = "t5_relu", 5
    tokens = EXPECTED[name]["input_ids"][0]
    loaded = MODELS[name]
    # Of five tokens, one of which ends: all outputs of up to three can be tried.
    model = replace(loaded, params={**loaded.params, "embedding": loaded.params["embedding"][:few]})
    tokens, stop = tokens % few, [1]
    every = [
        sequence
        for length in (1, 2, 3)
        for sequence in product(range(few), repeat=length)
        if 1 not in sequence[:-1] and (length == 3 or sequence[-1] == 1)
    ]
    scores = {
        sequence: log_probability(model, tokens, None, np.asarray(sequence)) / len(sequence)
        for sequence in every
    }
    best = sorted(scores, key=lambda sequence: -scores[sequence])[:6]
    found = beam_search(model, tokens, beams=60, count=3, stop=stop)
    assert [tuple(beam.tokens.tolist()) for beam in found[:6]] == best


def log_probability(
    model: T5, tokens: np.ndarray, mask: np.ndarray | None, labels: np.ndarray
) -> float:
    """Of an output, by the full pass."""
    loss, _ = t5.loss_fwd(model, tokens, labels, mask=mask)
    return -float(loss) * len(labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: beam_search(m, x), r"tokens must have shape \(N,\), got \(2, 37\)"),
        (lambda m, x: beam_search(m, x[0], beams=0), "beams must be at least 1, got 0"),
        (lambda m, x: generate(m, x, stop=[96]), r"stop must lie in 0 \.\. 95, got 96"),
        (
            lambda m, x: t5.encode(replace(m, ffn_k={"cross": 3}), x),
            "ffn_k must have entries for encoder, decoder only, got 'cross'",
        ),
        (
            lambda m, x: t5.encode(replace(m, attention_k={"encoder": 0}), x),
            r"attention_k\['encoder'\] must be at least 1, got 0",
        ),
    ],
)
def test_what_does_not_fit_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(MODELS["t5_relu"], EXPECTED["t5_relu"]["input_ids"])
