"""Reading and hiding: one pass over a text, watched, and a key in its midst."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from topk_np._process import UserError
from topk_np.diagnostics import kept_mass
from topk_np.models import load_model
from topk_np.models.llama import forward
from topk_np.models.scoring import next_tokens
from topk_np.studies import reading
from topk_np.studies.reading import hide, mass_of_layer, read


def test_watching_changes_nothing_and_sees_every_layer(tiny_gguf: Path) -> None:
    model = replace(load_model(tiny_gguf), attention_k={0: 3, "rest": 5}, ffn_k=20)
    ids = model.tokenizer.encode("The path of the theme. " * 4)
    shapes: list[tuple[int, ...]] = []
    seen = read(model, ids, lambda query, key, value: shapes.append(query.shape))
    expected = next_tokens(model, forward(model, ids), ids)
    np.testing.assert_array_equal(seen.loss, expected.loss)
    np.testing.assert_array_equal(seen.best, expected.best)
    assert [shape[-2] for shape in shapes] == [len(ids)] * 2


def test_the_mass_of_a_layer_is_the_mean_over_its_heads_and_queries() -> None:
    query, key = np.random.default_rng(0).standard_normal((2, 2, 1, 300, 4))
    whole = kept_mass(query, key, k=[64, 2], is_causal=True)
    np.testing.assert_allclose(
        mass_of_layer(query, key, [64, 2]), np.mean(whole, axis=(1, 2, 3)), rtol=1e-12
    )


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.99])
def test_a_key_is_hidden_at_its_depth(tiny_gguf: Path, depth: float) -> None:
    tokenizer = load_model(tiny_gguf).tokenizer
    ids = tokenizer.encode("The path of the theme. " * 60)[:250]
    prompt = hide(tokenizer, ids, "40961", depth=depth)
    assert len(prompt.ids) == 250
    text = np.concatenate([[True], prompt.is_text])
    text[0] = depth > 0
    assert np.array_equal(prompt.ids[text], ids[: text.sum()])
    assert np.flatnonzero(~text)[0] == prompt.before == int(text.sum() * depth)
    assert tokenizer.decode(prompt.ids[-prompt.digits :]) == "40961"


def test_sequences_begin_where_they_should_and_are_long_enough(
    tiny_gguf: Path, words: None
) -> None:
    tokenizer = load_model(tiny_gguf).tokenizer
    found = reading.sequences(tokenizer, (0, 7), 20)
    wholes = [tokenizer.encode(source()) for source in reading.SOURCES.values()]
    expected = [whole[start : start + 20] for start in (0, 7) for whole in wholes]
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)
    assert reading.digest(found) == reading.digest([one.astype(np.int64) for one in found])
    assert reading.digest(found) != reading.digest(found[::-1])
    with pytest.raises(UserError, match=r"paths must have 90,000 tokens for this model, got"):
        reading.sequences(tokenizer, (0,), 90_000)
