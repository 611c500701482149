"""The command: what it prints, saves and refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from tests.test_cli import fails
from topk_np._process import describe_machine
from topk_np.bench import command, figures, plots, report, sweep
from topk_np.bench.cases import BOTH, FORWARD, attention_case, ffn_case
from topk_np.bench.peers import GEMM, NUMPY, OURS, PEERS
from topk_np.bench.sweep import Alone, Row
from topk_np.cli import main

TINY_FFN = (ffn_case(32, 8, 64),)


@pytest.fixture
def tiny_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feed-forward layers and figures that take no time."""
    case = attention_case(64)
    monkeypatch.setattr(command, "FFN_CASES", TINY_FFN)
    monkeypatch.setattr(
        figures,
        "FIGURES",
        (figures.against("forward / plain NumPy", 1e9, case, FORWARD, NUMPY),),
    )


def row(**changes: Any) -> Row:
    """Time and memory of a peer."""
    values: dict[str, Any] = {
        "case": attention_case(512), "mode": BOTH, "peer": OURS, "seconds": [0.5, 1.5, 1.0],
        "ratio": 1.0, "memory": 3 * 2**20,
    }  # fmt: skip
    return Row(**values | changes)


@pytest.mark.usefixtures("tiny_bench")
def test_a_tiny_run_prints_tables_and_saves_data_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.delenv("OPENBLAS_L2_SIZE", raising=False)
    monkeypatch.setattr(sweep, "try_alone", lambda *args: Alone(0.1, 2**20))
    absent = replace(PEERS["torch-sdpa"], needs="no_such_package")
    monkeypatch.setitem(PEERS, "torch-sdpa", absent)
    out, drawn = tmp_path / "data", tmp_path / "plots"
    arguments = ["--lengths", "64", "16", "--repeats", "1", "--out", out, "--plots", drawn]
    peers = ["--peers", NUMPY, GEMM, "torch-sdpa"]
    assert main(["bench", *map(str, arguments), *peers]) == 0

    shown = capsys.readouterr().out
    assert "Attention, 4 heads, D = 64, k = 64, causal, forward+backward" in shown
    assert "Feed-forward, ReLU, k = 256, forward" in shown
    assert "torch-sdpa left out: no_such_package is not installed" in shown
    assert "forward / plain NumPy" in shown
    assert "Note:" not in shown

    data = json.loads((out / "attention.json").read_text())
    measured = {(r["keys"], r["causal"], r["mode"], r["peer"]) for r in data["rows"]}
    assert measured == {
        (length, causal, mode, peer)
        for length in (16, 64)
        for causal in (False, True)
        for mode in (FORWARD, BOTH)
        for peer in (OURS, NUMPY, GEMM)
        if (mode, peer) != (BOTH, GEMM)
    }
    assert all(len(r["all_seconds"]) == 1 and r["memory_bytes"] == 2**20 for r in data["rows"])
    assert data["notes"] == ["torch-sdpa left out: no_such_package is not installed"]
    assert {"cpu", "cores", "numpy", "scipy", "blas", "torch", "python", "date"} <= set(
        data["machine"]
    )
    assert len(json.loads((out / "ffn.json").read_text())["rows"]) == 5
    (figure,) = json.loads((out / "figures.json").read_text())["figures"]
    assert figure["ok"] is True
    assert figure["measured"] > 0

    pictures = sorted(drawn.iterdir())
    assert len(pictures) == 4
    for picture in pictures:
        assert imread(picture).shape[1] == 2000


@pytest.mark.usefixtures("tiny_bench")
def test_one_part_can_be_run_on_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--what", "ffn", "--peers", OURS, "--repeats", "1"]
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ffn.json"]
    assert "Attention" not in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_bench")
def test_attention_can_be_drawn_into_the_folder_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "try_alone", lambda *args: Alone(0.1, 2**20))
    arguments = ["--what", "attention", "--lengths", "16", "--peers", OURS, "--repeats", "1"]
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png"}


@pytest.mark.usefixtures("tiny_bench")
def test_where_every_peer_is_left_out_there_are_only_lines_saying_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "try_alone", lambda *args: "failed: MemoryError")
    arguments = ["--what", "attention", "--lengths", "16", "--peers", OURS]
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("topk_np left out from L = 16") == 4
    assert "Time" not in shown
    assert "Plot" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--what", "speed"], "argument --what: invalid choice: 'speed'"),
        (["--lengths", "0"], "argument --lengths: must be at least 1, got 0"),
        (["--lengths", "512", "long"], "argument --lengths: must be an integer, got 'long'"),
        (["--repeats", "0"], "argument --repeats: must be at least 1, got 0"),
        (["--time-limit", "x"], "argument --time-limit: must be an integer, got 'x'"),
        (["--memory-limit", "0"], "argument --memory-limit: must be at least 1, got 0"),
        (["--peers", "numpy", "jax"], "--peers must be among topk_np numpy"),
        (["--peers", "jax"], "got 'jax'"),
    ],
)
def test_wrong_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in fails(capsys, "bench", *arguments)


@pytest.mark.parametrize("option", ["--out", "--plots"])
def test_a_folder_that_cannot_be_made_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    folders = {"--out": str(tmp_path), option: str(taken)}
    words = [word for pair in folders.items() for word in pair]
    assert fails(capsys, "bench", *words) == f"topk_np bench: error: {option} {taken}: File exists"


def test_a_missing_package_is_named_with_the_extra_that_has_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["bench", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "topk_np bench: error: the package tqdm is missing: pip install 'topk_np[bench]'\n"
    )


def test_settings_of_blas_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = describe_machine() | {"blas_settings": {"OPENBLAS_L2_SIZE": "512"}}
    assert "Note: OPENBLAS_L2_SIZE=512 in the environment" in report.heading(machine)


def test_the_machine_is_described_without_cpuinfo_and_torch_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr("importlib.metadata.version", missing)
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["torch"] is None


def test_tables_show_time_ratio_and_memory() -> None:
    longer = attention_case(1024)
    rows = [
        row(),
        row(peer=NUMPY, seconds=[2.0], ratio=2.0, memory=2**30),
        row(case=longer, seconds=[0.0314]),
        row(case=ffn_case(2048, 768, 3072), peer=NUMPY, ratio=None),
    ]
    shown = report.tables(rows)
    lines = [line.split() for line in shown.splitlines()]
    assert ["time", "512", "1,024"] in lines
    assert [OURS, "1.00", "s", "31.4", "ms"] in lines
    assert [NUMPY, "2.00", "-"] in lines
    assert [NUMPY, "1,024", "MiB", "-"] in lines
    assert ["time", "(768,", "3072)"] in lines
    assert PEERS[NUMPY].what in shown


def test_figures_say_what_was_not_measured() -> None:
    case = attention_case(16)
    ratio = figures.against("a ratio", 0.5, case, BOTH, NUMPY)
    memory = figures.Figure("a peak", 70.25, figures.Entry(case, BOTH, OURS))
    shown = report.figures_table(
        [
            figures.Outcome(ratio, 0.25, [1.0], [4.0]),
            figures.Outcome(ratio, 0.75, [3.0], [4.0]),
            figures.Outcome(memory, missing="failed: MemoryError"),
        ]
    )
    assert [" ".join(line.split()) for line in shown.splitlines()[2:]] == [
        "a ratio 0.50 0.250 ok",
        "a ratio 0.50 0.750 not ok",
        "a peak 70 MiB - not measured: failed: MemoryError",
    ]


def test_no_plot_is_made_of_what_was_not_measured(tmp_path: Path) -> None:
    assert plots.save_plots(tmp_path, [], describe_machine()) == []
    assert list(tmp_path.iterdir()) == []


def test_labels_keep_apart_and_near_their_lines() -> None:
    assert plots.spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert plots.spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    crowded = plots.spread([0.3, 0.31, 0.33, 0.41, 0.9], 0.1)
    assert crowded[-1] == 0.9
    gaps = [after - before for before, after in pairwise(crowded)]
    assert min(gaps) > 0.0999


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (plots._time_name, 10.0, "10 s"),
        (plots._time_name, 0.01, "10 ms"),
        (plots._time_name, 1e-4, "100 µs"),
        (plots.memory_name, 4096, "4 GiB"),
        (plots.memory_name, 64, "64 MiB"),
        (plots._length_name, 512, "512"),
        (plots._length_name, 65536, "64k"),
    ],
)
def test_ticks_are_short(name: Any, value: float, expected: str) -> None:
    assert name(value) == expected
