"""The benchmark of a pretrained model, run on the tiny one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.tiny import MODEL, write_gguf
from topk_np.bench import model as bench
from topk_np.bench.model import Finding
from topk_np.cli import main
from topk_np.fetch import FetchError
from topk_np.models.llama import Llama, forward, logits


class Peer:
    """Computes what we do, and adds a little to the logits."""

    def __init__(self, model: Llama, threads: int) -> None:
        self.model, self.threads = model, threads

    def forward(self, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(forward(self.model, tokens))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        scores = np.array(logits(self.model, self.forward(tokens)))
        scores[3, 5] += 0.01
        return scores


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model."""
    return write_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf")


def test_without_the_peer_everything_else_is_measured(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "PACKAGED", str(path))
    monkeypatch.setattr(bench, "READ", 40)
    monkeypatch.setattr(bench, "run_alone", lambda work, *given: (work(*given), 1_500_000_000))
    monkeypatch.setattr(bench, "peer_installed", lambda: False)
    asked = ["bench", "--what", "model", "--repeats", "2", "--out", str(tmp_path)]
    assert main(asked) == 0
    figures = json.loads((tmp_path / "model.json").read_text())["figures"]
    agreement, *reading, _, _, _, _ = figures
    for figure in (agreement, *reading):
        assert figure["measured"] is figure["ok"] is None
    assert [list(figure["seconds"]) for figure in reading] == [["read, dense"], ["read, k = 64"]]
    for writing in figures[3:5]:
        assert writing["measured"] > 1
        assert len(writing["seconds"]["a token"]) == 2
    assert [memory["measured"] for memory in figures[5:]] == [1.5, 1.5]
    shown = capsys.readouterr().out
    assert shown.count("not measured: transformers is not installed") == 3


def test_the_peak_is_that_of_a_whole_process(path: Path) -> None:
    found = bench.memory(str(path), 64, lambda name: None)
    assert found.measured is not None
    assert 0.03 < found.measured < 2  # GB, of Python and NumPy with hardly any weights
    assert found.ok


def test_the_peer_is_compared_with() -> None:
    names: list[str] = []
    peer, tokens = Peer(MODEL, 1), np.arange(20)
    found = bench.agreement(MODEL, peer, tokens, names.append)
    assert found.measured == pytest.approx(0.01 / np.max(np.abs(peer.logits(tokens))), rel=1e-3)
    assert found.ok is False
    for k in (None, 4):
        read = bench.reading(replace(MODEL, attention_k=k), peer, tokens, 3, names.append)
        ours, theirs = read.seconds.values()
        pairs = zip(ours, theirs, strict=True)
        assert read.measured == pytest.approx(float(np.median([a / b for a, b in pairs])))
    assert {"agreement", "read, dense", "read, k = 4", "read, transformers"} <= set(names)


@pytest.mark.parametrize(
    ("most", "measured", "ok"),
    [(True, 2.0, True), (True, 2.1, False), (False, 2.0, True), (False, 1.9, False)],
)
def test_a_figure_is_reached_on_the_right_side_of_its_bound(
    most: bool, measured: float, ok: bool
) -> None:
    assert Finding("", 2.0, most, measured=measured).ok is ok
    assert Finding("", 2.0, most).ok is None


def test_a_failed_download_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*name: Any, **options: Any) -> Any:
        raise FetchError("no network")

    monkeypatch.setattr(bench, "load_named", offline)
    assert main(["bench", "--what", "model", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("topk_np bench: error: no network\n")
