"""``python -m topk_np train``: what it prints, saves and refuses, and how it goes on."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_cli import fails
from topk_np._process import UserError
from topk_np.cli import main
from topk_np.runs import classifying, loop
from topk_np.runs import train as command
from topk_np.runs.records import CHECKPOINT, LOG, read_log
from topk_np.tasks import Task
from topk_np.tasks.listops import listops
from topk_np.training import (
    ParamsError,
    flatten,
    load_params,
    save_params,
)

SMALL = ["--width", "8", "--heads", "2", "--hidden", "8", "--batch", "4", "--k", "3"]


@pytest.fixture(scope="module")
def small_task() -> Task:
    return listops(train=80, validation=10, test=20)


@pytest.fixture(autouse=True)
def no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw in one test only, as it takes a while."""
    if "plots" not in request.node.name:
        monkeypatch.setattr(command, "_draw", lambda *arguments: None)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_task: Task) -> Path:
    """An empty folder, and a task that takes no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "make_task", lambda name: small_task)
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    return tmp_path


def trained(*arguments: str) -> int:
    return main(["train", "listops", "--attention", "topk", *SMALL, *arguments])


def repeatable(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the machine."""
    return [
        {name: line[name] for name in line if name not in ("seconds", "memory")}
        for line in read_log(folder)
    ]


def test_a_run_leaves_results_log_checkpoint_and_plots(
    here: Path, capsys: pytest.CaptureFixture[str], small_task: Task
) -> None:
    assert trained("--steps", "4", "--evaluate-every", "2", "--test-k", "5", "3") == 0
    shown = capsys.readouterr()
    folder = here / "topk_np_train" / "listops-topk3-seed0"
    assert {path.name for path in folder.iterdir()} == {
        "accuracy_by_k.png", CHECKPOINT, LOG, "results.json", "training.png",
    }  # fmt: skip
    found = json.loads((folder / "results.json").read_text())
    for words in ("majority, no model", "root operator", "direct digits", "top-k, k = 5", "dense"):
        assert words in shown.out
    assert f"this model                      {found['test_accuracy']:.3f}" in shown.out
    assert found["swapped"]["3"] == found["test_accuracy"]
    assert list(found["swapped"]) == ["3", "5", "dense"]
    assert found["baselines"] == small_task.baselines
    lines = list(read_log(folder))
    assert [(line["step"], line.get("split")) for line in lines] == [
        (1, None), (2, None), (2, "validation"), (3, None), (4, None), (4, "validation"),
    ]  # fmt: skip
    assert all(0 < line["tokens"] <= 4 * 48 for line in lines if "split" not in line)
    assert "tokens/s" in shown.err


@pytest.mark.parametrize("attention", ["topk", "performer"])
def test_a_run_in_two_parts_is_the_whole_run_bit_for_bit(here: Path, attention: str) -> None:
    options = ["--attention", attention, "--evaluate-every", "4"]
    assert trained("--steps", "10", "--out", "whole", *options) == 0
    assert trained("--steps", "5", "--out", "parts", *options) == 0
    assert trained("--steps", "10", "--out", "parts", "--resume", *options) == 0
    whole, parts = (flatten(load_params(here / f / CHECKPOINT)[0]) for f in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        assert array.tobytes() == parts[name].tobytes(), name
    assert repeatable(here / "whole") == repeatable(here / "parts")
    first = load_params(here / "whole" / CHECKPOINT)[1]
    assert first["step"] == "10"


def test_ctrl_c_ends_after_a_step_and_leaves_a_checkpoint_to_go_on_from(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = classifying.take_step

    def interrupted(*arguments: Any) -> Any:
        if arguments[1].step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(command, "take_step", interrupted)
        assert trained("--steps", "6", "--out", "run") == 130
    assert "go on with --resume --out run" in capsys.readouterr().err
    assert load_params(here / "run" / CHECKPOINT)[1]["step"] == "3"
    assert trained("--steps", "6", "--out", "run", "--resume") == 0
    assert trained("--steps", "6", "--out", "whole") == 0
    assert repeatable(here / "run") == repeatable(here / "whole")


def test_lines_after_the_checkpoint_are_written_anew(here: Path) -> None:
    assert trained("--steps", "5", "--out", "run") == 0
    saved = (here / "run" / CHECKPOINT).read_bytes()
    assert trained("--steps", "7", "--out", "run", "--resume") == 0
    (here / "run" / CHECKPOINT).write_bytes(saved)
    with (here / "run" / LOG).open("a") as file:
        file.write('{"step": 8, "los')  # as a crash would leave it
    assert trained("--steps", "7", "--out", "run", "--resume") == 0
    assert [line["step"] for line in read_log(here / "run")] == [1, 2, 3, 4, 5, 6, 7]


def test_a_loss_that_is_nan_stops_with_a_message_and_keeps_the_checkpoint(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = classifying.take_step

    def diverging(*arguments: Any) -> Any:
        state, measured = take_step(*arguments)
        return state, measured._replace(loss=float("nan")) if state.step == last else measured

    monkeypatch.setattr(command, "take_step", diverging)
    for last, folder, kept in (
        (1, "new", ""),
        (4, "run", "; run keeps the last checkpoint before"),
    ):
        assert trained("--steps", "6", "--out", folder, "--learning-rate", "3") == 2
        said = f"the loss is nan at step {last}, with --learning-rate 3: try a lower one{kept}\n"
        assert capsys.readouterr().err.endswith(said)
    tree, about = load_params(here / "run" / CHECKPOINT)
    assert about["step"] == "2"
    assert all(np.isfinite(array).all() for array in flatten(tree).values())


def test_a_run_is_never_written_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained("--steps", "1", "--out", "run") == 0
    capsys.readouterr()
    arguments = ["train", "listops", "--attention", "topk", *SMALL, "--out", "run"]
    assert "--out run holds a run: go on with --resume" in fails(capsys, *arguments)
    message = fails(capsys, *arguments, "--resume", "--seed", "1", "--attention", "dense")
    assert "--resume: the run in run has --attention topk, --seed 0" in message
    message = fails(capsys, *arguments, "--resume", "--out", "elsewhere")
    assert "there is no checkpoint.safetensors in elsewhere" in message
    for _ in range(2):
        assert trained("--steps", "1") == 0
    assert trained("--steps", "2", "--resume") == 0
    names = sorted(path.name for path in (here / "topk_np_train").iterdir())
    assert names == ["listops-topk3-seed0", "listops-topk3-seed0-2"]
    newest = here / "topk_np_train" / names[1]
    assert [line["step"] for line in read_log(newest)] == [1, 2]


def test_a_damaged_checkpoint_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained("--steps", "1", "--out", "run") == 0
    path = here / "run" / CHECKPOINT
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    arguments = ["train", "listops", "--attention", "topk", *SMALL, "--out", "run", "--resume"]
    assert "checkpoint.safetensors: damaged" in fails(capsys, *arguments)
    assert issubclass(ParamsError, ValueError)
    assert not issubclass(UserError, ValueError)


@pytest.mark.parametrize("package", ["safetensors", "tqdm"])
def test_a_missing_package_is_named_with_its_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    shown = main(["train", "listops", *SMALL, "--steps", "1"]), capsys.readouterr().err
    assert shown[0] == 2
    assert f"the package {package} is missing: pip install 'topk_np[train]'" in shown[1]


def test_without_matplotlib_there_are_no_plots_and_a_line_that_says_so(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert trained("--steps", "1", "--out", "run") == 0
    assert "No plots: the package matplotlib is missing" in capsys.readouterr().out
    assert not list((here / "run").glob("*.png"))


def test_a_file_of_another_kind_in_place_of_the_checkpoint_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "listops", *SMALL, "--out", "run", "--resume"]
    path = here / "run" / CHECKPOINT
    path.parent.mkdir()
    save_params(path, {"bias": np.zeros(2)})
    assert "checkpoint.safetensors: not a checkpoint of this" in fails(capsys, *arguments)
    path.write_bytes(b"{")
    assert "damaged or not a safetensors file" in fails(capsys, *arguments)
