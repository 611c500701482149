"""The documented runs: trained once, gone on with after a stop, and shown as they are."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from topk_np.runs.classifying import Settings
from topk_np.runs.records import CHECKPOINT, LOG
from topk_np.studies import results


def ran(settings: Settings, accuracy: float) -> dict[str, Any]:
    """The file of results of the command."""
    dense = settings.attention in ("dense", "topk")
    return {
        "task": "listops 12-48",
        "settings": asdict(settings),
        "steps": 4,
        "cpu_seconds": 2.0,
        "peak_memory": 3 * 2**20,
        "test_examples": 20,
        "test_accuracy": accuracy,
        "swapped": {"4": 0.25, "dense": accuracy} if dense else {},
        "baselines": {"majority": 0.1},
    }


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Take down what would be trained, and leave a run of four steps instead."""
    asked: list[list[str]] = []

    def trained(command: list[str], check: bool) -> Any:
        asked.append(command[3:])
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        seed = int(command[command.index("--seed") + 1]) if "--seed" in command else 0
        attention = (
            command[command.index("--attention") + 1] if "--attention" in command else "dense"
        )
        chosen = Settings("listops", attention=attention, seed=seed)
        (folder / "results.json").write_text(json.dumps(ran(chosen, 0.5 + seed / 10)))
        lines: list[dict[str, Any]] = [
            {"step": i, "loss": float(i), "seconds": i / 2} for i in (1, 2, 3, 4)
        ]
        lines.insert(2, {"step": 2, "split": "validation", "accuracy": 0.4})
        (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return type("Done", (), {"returncode": 0})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", trained)
    monkeypatch.setattr(results, "TASKS", {"listops": results.Budget(2, 4000, (8, 16))})
    monkeypatch.setattr(results, "WINDOW", 2)
    monkeypatch.setattr(results, "METHODS", ({"attention": "dense"}, {"attention": "rfa"}))
    return asked


def test_each_run_is_trained_once_and_gone_on_with(commands: list[list[str]]) -> None:
    begun = Path("topk_np_train") / "listops-rfa-seed0"
    begun.mkdir(parents=True)
    (begun / CHECKPOINT).touch()
    Path("docs/figures").mkdir(parents=True)
    assert results.main([]) == 0
    assert [command[:2] for command in commands] == [["train", "listops"]] * 4
    assert ["--resume" in command for command in commands] == [False, True, False, False]
    assert [" --test-k 8 16 " in " ".join(command) for command in commands] == [
        "rfa" not in command for command in commands
    ]
    assert results.main([]) == 0
    assert len(commands) == 4
    saved = json.loads(Path("docs/data/train/listops-dense-seed1.json").read_text())
    assert saved["test_accuracy"] == 0.6
    assert saved["curve"]["training"] == [
        {"step": 2, "seconds": 1.0, "loss": 1.5},
        {"step": 4, "seconds": 2.0, "loss": 3.5},
    ]
    assert saved["curve"]["validation"] == [{"step": 2, "accuracy": 0.4}]
    text = Path("docs/data/train/table.md").read_text()
    assert "| majority, no model | 0.100 |" in text
    assert "| dense attention | 0.550 ± 0.071 | 2 | 0.250 ± 0.000 | 0.550 ± 0.071 | 2 | 3 |" in text
    assert "| random feature attention, 64 features | 0.550 ± 0.071 | 2 |  |  | 2 | 3 |" in text
    assert sorted(path.name for path in Path("docs/figures").iterdir()) == [
        "train_listops.png",
        "train_listops_k.png",
    ]


def test_a_run_that_fails_or_is_stopped_ends_it(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **options: type("Done", (), {"returncode": 130})
    )
    assert results.main(["--only", "rfa"]) == 130
    assert not list(Path("docs/data/train").glob("*.json"))
