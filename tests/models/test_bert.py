"""BERT's hidden states, logits and pooling, against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.backends import Backend
from tests.models.golden import DATA, assert_near, expected
from topk_np.models import bert, load_model
from topk_np.models.bert import Bert
from topk_np.training import tree_map

MODEL: Bert = load_model(DATA / "bert")
EXPECTED = expected("bert")
TOKENS, TYPES = EXPECTED["input_ids"], EXPECTED["token_type_ids"]
MASK = EXPECTED["attention_mask"] == 1


@pytest.mark.parametrize("ks", [{}, {"attention_k": 40, "ffn_k": [64, None]}], ids=str)
def test_hidden_states_and_logits_are_those_of_the_reference(
    xp: Backend, ks: dict[str, Any]
) -> None:
    model = replace(MODEL, params=tree_map(xp.asarray, MODEL.params), **ks)
    mask, types = xp.arrays(MASK, TYPES)
    hidden = bert.forward(model, xp.asarray(TOKENS), mask=mask, types=types)
    assert_near(xp.to_numpy(hidden), EXPECTED["last_hidden"])
    assert_near(xp.to_numpy(bert.logits(model, hidden)), EXPECTED["logits"])


def test_padding_changes_nothing() -> None:
    length = int(MASK[1].sum())
    alone = bert.forward(MODEL, TOKENS[1, :length], types=TYPES[1, :length])
    assert_near(alone, EXPECTED["last_hidden"][1, :length])


def test_small_k_changes_the_result() -> None:
    for model in (replace(MODEL, attention_k=2), replace(MODEL, ffn_k=2)):
        hidden = bert.forward(model, TOKENS, mask=MASK, types=TYPES)
        assert np.max(np.abs(hidden - EXPECTED["last_hidden"])) > 1e-3


def test_a_sequence_is_pooled_without_its_padding() -> None:
    hidden = EXPECTED["last_hidden"]
    length = int(MASK[1].sum())
    mean = bert.pooled(MODEL, hidden, mask=MASK)
    np.testing.assert_allclose(mean[1], hidden[1, :length].mean(axis=0), rtol=1e-4, atol=1e-6)
    assert np.array_equal(bert.pooled(MODEL, hidden, how="first"), hidden[:, 0])
    weights = {"weight": 2 * np.eye(32, dtype=np.float32), "bias": np.ones(32, np.float32)}
    model = replace(MODEL, params={**MODEL.params, "pooler": weights})
    rows = bert.pooled(model, hidden, how="pooler")
    np.testing.assert_allclose(rows, np.tanh(2 * hidden[:, 0] + 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bert.forward(MODEL, np.zeros(65, int)), "tokens must have at most 64 positions"),
        (
            lambda: bert.forward(MODEL, TOKENS, types=TYPES + 2),
            r"types must lie in 0 \.\. 1, got 2 \.\. 3",
        ),
        (
            lambda: bert.forward(MODEL, TOKENS, mask=MASK[:, 1:]),
            r"mask must have the shape of the tokens, \(2, 40\), got \(2, 39\)",
        ),
        (
            lambda: bert.pooled(MODEL, EXPECTED["last_hidden"], how="pooler"),
            "how must be 'mean' or 'first' for a model without a pooler",
        ),
        (
            lambda: bert.logits(
                replace(MODEL, params={k: v for k, v in MODEL.params.items() if k != "head"}),
                EXPECTED["last_hidden"],
            ),
            "the model must have a masked-LM head",
        ),
    ],
)
def test_what_does_not_fit_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
