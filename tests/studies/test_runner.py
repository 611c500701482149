"""The command `experiment`: what it measures once, keeps, shows, and goes on with."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from tests.test_cli import fails
from topk_np._process import UserError, markdown
from topk_np.cli import main
from topk_np.studies import run, runner
from topk_np.studies.runner import (
    Point,
    Prepared,
    Record,
    Result,
    Setting,
    Tick,
    load_record,
    open_record,
)


class Squares:
    """An experiment that takes no time: numbers and their squares."""

    def __init__(self) -> None:
        self.measured: list[int] = []
        self.numbers = [3, 1, 2]
        self.stop_at: int | None = None
        self.about: dict[str, Any] = {"power": 2, "of": ("whole", "numbers")}

    def prepare(self, model: str | None, /) -> Prepared:
        return Prepared(
            self.about, [{"n": n} for n in self.numbers], self.measure, lambda setting: 2
        )

    def measure(self, setting: Setting, tick: Tick, /) -> Result:
        if setting["n"] == self.stop_at:
            raise KeyboardInterrupt
        tick()
        tick()
        self.measured.append(setting["n"])
        return {"square": setting["n"] ** 2}

    def label(self, setting: Setting, /) -> str:
        return f"number {setting['n']}"

    def table(self, points: Sequence[Point], /) -> str:
        rows = [[self.label(p.setting), str(p.result["square"])] for p in points]
        return markdown(["", "square"], rows)

    def draw(self, points: Sequence[Point], /) -> dict[str, Figure]:
        figure = Figure()
        figure.subplots().plot([point.result["square"] for point in points])
        return {"squares": figure}


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Squares:
    """The experiment, by the name of a real one."""
    made = Squares()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.import_module("topk_np.studies.runner"), "find", lambda _: made)
    return made


def test_each_point_is_measured_once_and_kept(
    squares: Squares, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "perplexity", "--only", "number 1"]) == 0
    assert squares.measured == [1]
    assert main(["experiment", "perplexity"]) == 0
    assert squares.measured == [1, 3, 2]
    assert main(["experiment", "perplexity"]) == 0
    assert squares.measured == [1, 3, 2]
    found = json.loads(Path("topk_np_experiments/perplexity.json").read_text())
    assert found["about"] == {"power": 2, "of": ["whole", "numbers"]}
    assert [point["setting"]["n"] for point in found["points"]] == [3, 1, 2]
    assert [point["result"]["square"] for point in found["points"]] == [9, 1, 4]
    assert [point["machine"] for point in found["points"]] == [0, 0, 0]
    assert {"cpu", "numpy", "topk_np"} <= found["machines"][0].keys()
    table = Path("topk_np_experiments/perplexity.md").read_text()
    assert table.splitlines() == [
        "|          | square |",
        "| -------- | -----: |",
        "| number 3 |      9 |",
        "| number 1 |      1 |",
        "| number 2 |      4 |",
    ]
    assert table in capsys.readouterr().out
    assert imread(Path("topk_np_experiments/squares.png")).ndim == 3


def test_what_was_measured_before_a_stop_is_not_measured_again(squares: Squares) -> None:
    squares.stop_at = 2
    assert main(["experiment", "perplexity", "--out", "a", "--plots", "b"]) == 130
    assert [point.setting["n"] for point in load_record(Path("a/perplexity.json")).points] == [3, 1]
    squares.stop_at = None
    assert main(["experiment", "perplexity", "--out", "a", "--plots", "b"]) == 0
    assert squares.measured == [3, 1, 2]
    assert Path("b/squares.png").exists()


def test_show_measures_nothing(squares: Squares, capsys: pytest.CaptureFixture[str]) -> None:
    message = "topk_np experiment: error: --show: there is no"
    assert fails(capsys, "experiment", "perplexity", "--show").startswith(message)
    record = run("perplexity", out=Path("a"), only="number 2")
    capsys.readouterr()
    assert run("perplexity", out=Path("a"), show=True) == record
    assert squares.measured == [2]
    assert "| number 2 |      4 |" in capsys.readouterr().out


def test_points_of_another_experiment_are_not_shown(
    squares: Squares, capsys: pytest.CaptureFixture[str]
) -> None:
    run("perplexity", out=Path("a"), only="number 2")
    Path("a/perplexity.json").rename("a/passkey.json")
    capsys.readouterr()
    assert fails(capsys, "experiment", "passkey", "--show", "--out", "a").endswith(
        "--show: a/passkey.json has no points of passkey"
    )


def test_a_file_in_the_place_of_a_folder_is_named(
    squares: Squares, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    for option in ("--out", "--plots"):
        main(["experiment", "perplexity", option, "file"])
        assert f"error: {option} file: File exists" in capsys.readouterr().err
    assert squares.measured == [3, 1, 2]


def test_points_of_another_model_or_text_are_not_mixed_in(
    squares: Squares, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "perplexity", "--only", "1"]) == 0
    capsys.readouterr()
    squares.about["power"] = 3
    assert fails(capsys, "experiment", "perplexity") == (
        "topk_np experiment: error: topk_np_experiments/perplexity.json holds points with power 2, "
        "this run has 3: name another folder with --out, or remove the file"
    )


def test_words_that_no_setting_has_are_an_error(
    squares: Squares, capsys: pytest.CaptureFixture[str]
) -> None:
    run("perplexity", out=Path("topk_np_experiments"))
    capsys.readouterr()
    assert fails(capsys, "experiment", "perplexity", "--only", "number 7").endswith(
        "--only number 7: no setting's words hold this"
    )


def test_names_that_are_unknown_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'speed'" in fails(capsys, "experiment", "speed")


def test_a_file_that_is_not_a_record_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "perplexity.json"
    for text in ("{", "[]", '{"points": [{}]}', '{"points": []}'):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a file of this command"):
            open_record(path, "perplexity", {})


def test_each_machine_is_named_once_whatever_the_date(tmp_path: Path) -> None:
    record = Record("perplexity", {})
    for n, (cpu, date) in enumerate([("a", "1"), ("b", "1"), ("a", "2")]):
        record = record.with_point({"n": n}, {}, 0.123, {"cpu": cpu, "date": date})
    assert [point.machine for point in record.points] == [0, 1, 0]
    assert record.machines == [{"cpu": "a", "date": "1"}, {"cpu": "b", "date": "1"}]
    record.save(tmp_path / "record.json")
    assert load_record(tmp_path / "record.json") == record


def test_points_that_are_no_longer_planned_stay_last() -> None:
    record = Record("perplexity", {})
    for n in (5, 2, 1):
        record = record.with_point({"n": n}, {}, 0.0, {})
    ordered = record.in_order([{"n": 1}, {"n": 2}])
    assert [point.setting["n"] for point in ordered.points] == [1, 2, 5]


@pytest.mark.parametrize("name", runner.EXPERIMENTS)
def test_every_experiment_has_its_functions(name: str) -> None:
    experiment = runner.find(name)
    for function in ("prepare", "label", "table", "draw"):
        assert callable(getattr(experiment, function))
