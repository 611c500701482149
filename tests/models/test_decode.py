"""Generation through the caches, against the full causal pass and the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import Backend
from tests.models.golden import DATA
from tests.models.test_llama import assert_agrees, model_on
from tests.models.tiny import EXPECTED, MODEL
from topk_np import KVCache
from topk_np.models import llama, load_model
from topk_np.models.decode import Sampling, generate
from topk_np.models.llama import forward, logits

TOKENS = EXPECTED["input_ids"]
DEPTH, LENGTH = len(MODEL.params["layers"]), TOKENS.shape[1]
PROMPT, WRITTEN = EXPECTED["prompt"], EXPECTED["generated"]
COUNT = WRITTEN.shape[1] - PROMPT.shape[1]
# With a random output layer of its own the model writes more than one token again and again.
HEAD = np.random.default_rng(2).standard_normal((96, 32)).astype(np.float32)
VARIED = replace(MODEL, params={**MODEL.params, "head": HEAD})


def run(params: Any, tokens: Any, **options: Any) -> np.ndarray:
    """All generated tokens (..., n), on NumPy."""
    return np.stack(list(generate(params, tokens, **options)), axis=-1)


@pytest.mark.parametrize(
    "options",
    [{}, {"attention_k": 3}, {"ffn_k": 5}, {"attention_k": {0: None, "rest": 2}, "ffn_k": [9, 4]}],
    ids=str,
)
@given(sizes=st.lists(st.integers(1, LENGTH), max_size=6))
def test_positions_read_in_steps_have_the_rows_of_the_full_pass(
    xp: Backend, options: dict[str, Any], sizes: list[int]
) -> None:
    model, tokens = model_on(xp, **options), xp.asarray(TOKENS)
    full = xp.to_numpy(forward(model, tokens))
    caches = [KVCache() for _ in range(DEPTH)]
    start = 0
    for size in [*sizes, LENGTH]:
        stop = min(start + size, LENGTH)
        if start == stop:
            break
        rows = forward(model, tokens[:, start:stop], caches=caches)
        assert_agrees(xp.to_numpy(rows), full[:, start:stop])
        assert {len(cache) for cache in caches} == {stop}
        start = stop


@pytest.mark.parametrize("options", [{}, {"attention_k": 100, "ffn_k": 64}], ids=str)
def test_greedy_generation_is_that_of_the_reference(xp: Backend, options: dict[str, Any]) -> None:
    model, prompt = model_on(xp, **options), xp.asarray(PROMPT)
    ids = list(generate(model, prompt, count=COUNT))
    assert {step.dtype for step in ids} == {prompt.dtype}
    written = np.stack([xp.to_numpy(step) for step in ids], axis=-1)
    assert np.array_equal(written, WRITTEN[:, PROMPT.shape[1] :])


@pytest.mark.parametrize("options", [{"attention_k": 2}, {"ffn_k": 3}], ids=str)
def test_generation_chooses_what_the_full_pass_would_with_the_same_k(
    options: dict[str, Any],
) -> None:
    tokens, model = PROMPT[0], replace(VARIED, **options)
    chosen = run(model, tokens, count=8)
    for token in chosen:
        assert token == np.argmax(logits(model, forward(model, tokens))[-1])
        tokens = np.append(tokens, token)
    assert not np.array_equal(chosen, run(VARIED, PROMPT[0], count=8))


def test_sampling_draws_from_the_scores_of_the_full_pass() -> None:
    def sampling() -> Sampling:
        return Sampling(temperature=1.5, top_p=0.9, rng=np.random.default_rng(3))

    tokens, same = PROMPT[0], sampling()
    drawn = run(VARIED, tokens, count=8, sampling=sampling())
    for token in drawn:
        assert token == same.choose(logits(VARIED, forward(VARIED, tokens))[-1:])[0]
        tokens = np.append(tokens, token)
    assert not np.array_equal(drawn, run(VARIED, PROMPT[0], count=8))


def test_every_position_after_the_prompt_is_computed_once_and_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    def watched(params: Any, tokens: Any, **options: Any) -> Any:
        sizes.append(tokens.shape[-1])
        before = [cache.key if len(cache) else None for cache in options["caches"]]
        room = [cache.capacity for cache in options["caches"]]
        out = forward(params, tokens, **options)
        for cache, key, capacity in zip(options["caches"], before, room, strict=True):
            if key is not None and cache.capacity == capacity:
                assert np.shares_memory(cache.key, key)
        return out

    monkeypatch.setattr(llama, "forward", watched)
    run(MODEL, PROMPT, count=5)
    assert sizes == [PROMPT.shape[1], 1, 1, 1, 1]


def test_a_stop_token_is_the_last_one() -> None:
    written = run(VARIED, PROMPT[0], count=8)
    assert written[3] not in written[:3]
    got = run(VARIED, PROMPT[0], count=8, stop=[95, int(written[3])])
    assert np.array_equal(got, written[:4])


def test_sequences_of_a_batch_end_by_themselves(xp: Backend) -> None:
    prompts = np.stack([PROMPT[0], PROMPT[0][::-1]])
    alone = [run(VARIED, prompt, count=12) for prompt in prompts]
    stop = [int(alone[0][1]), int(alone[1][4])]
    ends = [int(np.argmax(np.isin(row, stop))) for row in alone]
    assert ends == [1, 4]
    steps = generate(model_on(xp, VARIED), xp.asarray(prompts), count=12, stop=stop)
    got = np.stack([xp.to_numpy(step) for step in steps], axis=-1)
    assert got.shape == (2, 5)
    for row, written, end in zip(got, alone, ends, strict=True):
        assert np.array_equal(row[: end + 1], written[: end + 1])
        assert set(row[end:].tolist()) == {int(written[end])}


def test_without_a_count_the_context_is_filled() -> None:
    params = replace(MODEL, config=replace(MODEL.config, context=PROMPT.shape[1] + 3))
    assert run(params, PROMPT).shape[-1] == 3
    full = np.concatenate([PROMPT, PROMPT[:, :3]], axis=-1)
    assert list(generate(params, full)) == []


def test_a_count_of_0_gives_nothing() -> None:
    assert list(generate(MODEL, PROMPT, count=0)) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"count": -1}, ValueError, "count must be at least 0, got -1"),
        ({"count": 2.0}, TypeError, "count must be an integer, got 2"),
        (
            {"count": 10_000},
            ValueError,
            r"the prompt and count must fit the model's context, \d+ tokens, got \d+ and 10000",
        ),
        ({"stop": [1, -2]}, ValueError, r"stop\[1\] must be at least 0, got -2"),
        ({"stop": [96]}, ValueError, r"stop must lie in 0 \.\. 95, got 96"),
    ],
)
def test_options_are_checked_at_the_call(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generate(MODEL, PROMPT, **options)


@pytest.mark.parametrize(
    ("ks", "message"),
    [
        ({"attention_k": 0}, "attention_k must be at least 1, got 0"),
        ({"ffn_k": [1]}, "ffn_k must have an entry for each of 2 layers, got 1"),
    ],
)
def test_the_k_of_a_model_is_checked_at_the_call(ks: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(replace(MODEL, **ks), PROMPT)


def test_a_model_that_does_not_write_is_refused() -> None:
    model = load_model(DATA / "bert")
    with pytest.raises(
        ValueError, match="model must be one that writes, got one of the family bert"
    ):
        generate(model, TOKENS)


def test_tokens_are_checked_at_the_call() -> None:
    with pytest.raises(TypeError, match="tokens must be integers, got dtype float64"):
        generate(MODEL, np.zeros(3))


def test_caches_must_fit_the_model_and_each_other() -> None:
    with pytest.raises(ValueError, match="caches must be one for each of 2 layers, got 1"):
        forward(MODEL, TOKENS, caches=[KVCache()])
    caches = [KVCache() for _ in range(DEPTH)]
    forward(MODEL, TOKENS, caches=caches)
    caches[1].truncate(5)
    with pytest.raises(ValueError, match=rf"must all have the same length, got \[5, {LENGTH}\]"):
        forward(MODEL, TOKENS[:, :1], caches=caches)
