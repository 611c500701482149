"""The experiment `passkey`, on the tiny model through the code that measures the real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from topk_np.models import load_model
from topk_np.models.llama import Llama, forward
from topk_np.models.scoring import NextTokens
from topk_np.studies import passkey, reading, run
from topk_np.studies.runner import Point


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, words: None) -> None:
    """Short texts, few keys and few k."""
    sizes = {"TOKENS": 180, "TRIES": 6, "ATTENTION_KS": (4,), "FFN_KS": (16,)}
    for name, value in sizes.items():
        monkeypatch.setattr(passkey, name, value)


def test_keys_differ_and_are_hidden_from_the_beginning_to_the_end(
    small: None, tiny_gguf: Path
) -> None:
    model = load_model(tiny_gguf)
    read = reading.sequences(model.tokenizer, (0,), 180)
    prompts = passkey.make_prompts(model, read)
    keys = [model.tokenizer.decode(prompt.ids[-prompt.digits :]) for prompt in prompts]
    assert len(set(keys)) == 6
    assert [len(key) for key in keys] == [5] * 6
    before = [prompt.before for prompt in prompts]
    assert before == sorted(before)
    for prompt, text in zip(prompts, read * 3, strict=True):
        assert np.array_equal(prompt.ids[: prompt.before], text[: prompt.before])


@pytest.mark.parametrize("setting", [{}, {"attention_k": 4}, {"ffn_k": 16}], ids=str)
def test_what_prompts_share_is_read_once_and_each_ends_as_in_a_pass_of_its_own(
    small: None, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    model = replace(load_model(tiny_gguf), **setting)
    prompts = passkey.make_prompts(model, reading.sequences(model.tokenizer, (0,), 180))[::2]
    read, ends = [], []

    def reads(own: Llama, ids: np.ndarray, **options: Any) -> Any:
        read.append(len(ids))
        return forward(own, ids, **options)

    def judged(own: Llama, hidden: np.ndarray, ids: np.ndarray) -> NextTokens:
        ends.append(hidden)
        return NextTokens(np.zeros(5), np.where(len(ends) == 2, ids[1:], 0))

    monkeypatch.setattr(passkey, "forward", reads)
    monkeypatch.setattr(passkey, "next_tokens", judged)
    ticks: list[None] = []
    found = passkey.find_keys(model, prompts, lambda: ticks.append(None))
    assert found == [False, True, False]
    assert len(ticks) == 3
    assert sum(read) == prompts[-1].before + sum(180 - prompt.before for prompt in prompts)
    for prompt, end in zip(prompts, ends, strict=True):
        whole = forward(model, prompt.ids)[-6:]
        np.testing.assert_allclose(end, whole, rtol=1e-4, atol=1e-5)


def test_found_keys_are_counted_and_marked(small: None, tiny_gguf: Path, tmp_path: Path) -> None:
    record = run("passkey", model=str(tiny_gguf), out=tmp_path)
    assert [point.setting for point in record.points] == [{}, {"attention_k": 4}, {"ffn_k": 16}]
    for point in record.points:
        assert len(point.result["right"]) == 6
        assert point.result["found"] == point.result["right"].count("+")
    assert (tmp_path / "passkey.png").exists()
    assert record.about["tries"] == 6


def test_marks_are_in_the_order_of_the_depths(
    small: None, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_gguf)
    prompts = passkey.make_prompts(model, reading.sequences(model.tokenizer, (0,), 180))
    deep = prompts[3].before
    monkeypatch.setattr(
        passkey, "find_keys", lambda model, some, tick: [one.before >= deep for one in some]
    )
    assert passkey.measure(model, prompts, {}, lambda: None) == {"found": 3, "right": "---+++"}


def test_the_table_says_how_many_are_found() -> None:
    results: list[dict[str, Any]] = [
        {"found": 3, "right": "+++-"},
        {"found": 0, "right": "----"},
    ]
    settings = [{}, {"attention_k": 4}]
    points = [Point(s, r, 0.0, 0) for s, r in zip(settings, results, strict=True)]
    assert passkey.table(points).splitlines() == [
        "| 1,024 tokens    | keys found |",
        "| --------------- | ---------: |",
        "| dense           |     3 of 4 |",
        "| attention k = 4 |     0 of 4 |",
    ]
