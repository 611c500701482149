"""The experiment `repair`, on the tiny model through the code that measures the real one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from topk_np.runs import language as texts
from topk_np.studies import repair, run
from topk_np.studies.runner import Point

K = {"ffn_k": 8}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short training on few texts."""
    monkeypatch.setattr(repair, "STEPS", 12)
    training = replace(repair.TRAINING, lora=2, batch=2, length=16, learning_rate=0.02)
    monkeypatch.setattr(repair, "TRAINING", training)
    monkeypatch.setattr(repair, "SETTINGS", ({}, K))
    topics = {
        str(i): f"the path {i}\n\n" + "the theme of the path " * 9 + str(i) for i in range(20)
    }
    monkeypatch.setattr(texts, "documents", lambda paths: topics)


def test_training_lowers_perplexity_dense_and_with_topk_and_is_the_same_every_time(
    small: None, tiny_gguf: Path, tmp_path: Path
) -> None:
    record = run("repair", model=str(tiny_gguf), out=tmp_path)
    assert [point.setting for point in record.points] == [{}, K]
    for point in record.points:
        found = point.result
        assert found["after"] < 0.9 * found["before"]
        assert len(found["losses"]) == 12
        assert [other for other, _ in found["others"]] == [{} if point.setting else K]
    assert (tmp_path / "repair.png").exists()
    again = run("repair", model=str(tiny_gguf), only="feed-forward", out=tmp_path / "again")
    assert again.points[0].result == record.points[1].result


def test_the_table_sets_the_cost_after_training_beside_that_before() -> None:
    dense = {"before": 20.0, "after": 10.0, "others": [[K, 14.0]], "losses": []}
    found: dict[str, Any] = {"before": 40.0, "after": 10 * 2**0.25, "others": [], "losses": []}
    assert math.isclose(repair.repaired(found, dense), 0.75)
    points = [Point({}, dense, 0.0, 0), Point(K, found, 0.0, 0)]
    assert repair.table(points).splitlines() == [
        "| perplexity on held-out text | not tuned | tuned dense | tuned with it | repaired |",
        "| --------------------------- | --------: | ----------: | ------------: | -------: |",
        "| dense                       |     20.00 |       10.00 |               |          |",
        "| feed-forward k = 8          |     40.00 |       14.00 |         11.89 |      75% |",
    ]
    assert "|     40.00 |             |         11.89 |          |" in repair.table(points[1:])
    assert repair.draw(points[1:]) == {}
