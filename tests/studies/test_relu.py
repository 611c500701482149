"""The experiment `relu`, on a small classifier that is trained for a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from topk_np._process import UserError
from topk_np.runs import train as command
from topk_np.runs.classifying import evaluate
from topk_np.runs.records import CHECKPOINT
from topk_np.studies import relu, run
from topk_np.studies.runner import Point
from topk_np.tasks import Task
from topk_np.tasks.listops import listops
from topk_np.training import classifier, load_params, save_params, tree_map

SMALL: dict[str, Any] = {"width": 8, "heads": 2, "hidden": 16, "batch": 4}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Task:
    """A task that takes no time, in an empty folder."""
    made = listops(train=80, validation=10, test=60)
    for module in (command, relu):
        monkeypatch.setattr(module, "make_task", lambda name: made)
    monkeypatch.setattr(command, "_draw", lambda *arguments: None)
    monkeypatch.setattr(relu, "BATCH", 25)
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def trained(task: Task) -> Path:
    """The folder of a run of the command `train`."""
    command.run(
        task="listops",
        steps=5,
        out=Path("run"),
        resume=False,
        test_k=(),
        evaluate_every=5,
        **SMALL,
    )
    return Path("run")


def test_accuracy_is_that_of_the_same_parameters_with_fewer_units(
    trained: Path, task: Task, tmp_path: Path
) -> None:
    record = run("relu", model=str(trained), out=tmp_path)
    assert [point.setting for point in record.points] == [
        {}, {"ffn_k": 2}, {"ffn_k": 4}, {"ffn_k": 8},
    ]  # fmt: skip
    model, params, examples = relu.prepare(str(trained)).measure.args  # type: ignore[attr-defined]
    for point in record.points:
        kept = replace(model, block=replace(model.block, ffn_k=point.setting.get("ffn_k")))
        tested = evaluate(kept, params, examples)
        assert point.result["accuracy"] == pytest.approx(tested.accuracy, abs=1e-4)
        assert point.result["loss"] == pytest.approx(tested.loss, abs=1e-4)
    tokens = int(task.test.lengths.sum())
    assert [sum(own) for own in record.points[0].result["active"]] == [tokens] * 2
    assert record.about["training"]["steps"] == 5
    assert (tmp_path / "relu.png").exists()


def test_as_many_units_as_are_active_change_nothing(trained: Path) -> None:
    model, params, examples = relu.prepare(str(trained)).measure.args  # type: ignore[attr-defined]
    counts = relu.active_units(model, params, examples)
    most = int(max(own.max() for own in counts))
    assert 1 < most < model.hidden
    for k, same in ((most, True), (most // 2, False)):
        kept = replace(model, block=replace(model.block, ffn_k=k))
        whole, part = (
            classifier(examples.tokens, params, one, lengths=examples.lengths)
            for one in (model, kept)
        )
        assert np.allclose(part, whole, rtol=1e-5, atol=1e-6) is same


def test_without_a_run_one_is_trained_and_found_again(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(relu, "STEPS", 2)
    calls: list[Any] = []

    def small(**options: Any) -> Any:
        calls.append(options["resume"])
        return command.run(**options, **SMALL)

    monkeypatch.setattr(relu, "run", small)
    first = run("relu", out=tmp_path / "out", only="k = 4")
    assert run("relu", out=tmp_path / "out", only="k = 4") == first
    assert calls == [False, True]
    assert (tmp_path / "topk_np_train" / "listops-relu").is_dir()


def test_points_of_other_parameters_are_not_gone_on_with(trained: Path, tmp_path: Path) -> None:
    run("relu", model=str(trained), out=tmp_path, only="k = 4")
    tree, about = load_params(trained / CHECKPOINT)
    tree["averaged"] = tree_map(lambda array: array * np.float32(1 + 1e-5), tree["averaged"])
    save_params(trained / CHECKPOINT, tree, metadata=about)
    with pytest.raises(UserError, match="holds points with parameters"):
        run("relu", model=str(trained), out=tmp_path)


def test_a_folder_without_a_run_is_named(task: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model .*nothing: there is no checkpoint"):
        run("relu", model="nothing", out=tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"--model: .*damaged or not a safetensors file"):
        run("relu", model=str(tmp_path), out=tmp_path)


def test_a_run_of_its_own_that_is_damaged_is_named(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "topk_np_train" / "listops-relu"
    own.mkdir(parents=True)
    (own / "checkpoint.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"^topk_np_train.*damaged or not a safetensors file"):
        run("relu", out=tmp_path)


def test_the_table_says_of_how_many_tokens_all_active_units_are_kept() -> None:
    active = [[0, 3, 1, 0, 0], [0, 0, 2, 1, 1]]
    dense = Point({}, {"accuracy": 0.75, "loss": 0.5, "active": active}, 0.0, 0)
    kept = Point({"ffn_k": 2}, {"accuracy": 0.5, "loss": 0.625}, 0.0, 0)
    assert relu.table([dense, kept]).splitlines() == [
        "|                    | accuracy |  loss | tokens with no more active units |",
        "| ------------------ | -------: | ----: | -------------------------------: |",
        "| dense              |    0.750 | 0.500 |                                  |",
        "| feed-forward k = 2 |    0.500 | 0.625 |                            75.0% |",
        "",
        "Units that are active for a token, mean of each layer: 31.2%, 68.8%.",
    ]
    assert relu.table([kept]).splitlines()[-1].endswith("|                                  |")
    assert relu.draw([kept]) == {}
