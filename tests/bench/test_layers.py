"""The memory of a deep model: what is run, kept from one call to the next, and said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from tests.oracles import assert_close
from topk_np._process import RunFailed, UserError
from topk_np.bench import layers
from topk_np.bench.layers import DENSE, LONGEST_DENSE, METHODS, TOPK, Model, Run
from topk_np.bench.sweep import Limits
from topk_np.cli import main
from topk_np.layers import encoder_block_fwd
from topk_np.training import flatten

MEBI = 2**20
SMALL = Model(layers=2, width=24, hidden=48, heads=12)
NO_LIMITS = Limits(60, 2**40)


def taken(method: str, length: int, limit: float = 60) -> Run:
    """A run whose memory is quadratic or linear in length."""
    beyond = length**2 * 10 if METHODS[method].quadratic else length * 10_000
    return Run(method, length, beyond + 2 * MEBI, MEBI, 1.5, 2.0)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A list of runs, which take no time."""
    runs: list[tuple[str, int]] = []

    def run(method: str, length: int, limit: float) -> Run:
        runs.append((method, length))
        return taken(method, length)

    monkeypatch.setattr(layers, "try_alone", run)
    return runs


def loss(params: list[Any], method: str, length: int) -> float:
    """The loss that `step` lowers, with other parameters."""
    x = np.random.default_rng(0)
    for _ in range(SMALL.layers):  # as many numbers as the parameters took
        METHODS[method].config(SMALL).init(x, width=SMALL.width, hidden=SMALL.hidden)
    rows = x.standard_normal((length, SMALL.width), np.float32).astype(np.float64)
    for block in params:
        config = METHODS[method].config(SMALL)
        rows, _ = encoder_block_fwd(rows, block, config, is_causal=True)
    return float(np.sum(rows**2) / 2)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_step_gives_the_slopes_of_its_loss(name: str) -> None:
    params, grads = layers.step(METHODS[name].config(SMALL), SMALL, 9)
    wide = [
        {n: {m: a.astype(np.float64) for m, a in p.items()} for n, p in b.items()} for b in params
    ]
    h = 1e-5
    for block, of_block in zip(wide, reversed(grads), strict=True):
        for path in ("attention.key", "ffn.values"):
            part, leaf = path.split(".")
            grad, array = flatten(of_block)[path], block[part][leaf]
            direction = np.random.default_rng(1).standard_normal(array.shape)
            ends = []
            for sign in (1, -1):
                block[part][leaf] = array + sign * h * direction
                ends.append(loss(wide, name, 9))
            block[part][leaf] = array
            slope = (ends[0] - ends[1]) / (2 * h)
            assert abs(np.sum(grad * direction) - slope) < 1e-3 * np.abs(grad * direction).sum()


def test_all_exact_methods_compute_the_same() -> None:
    found = {}
    for name in METHODS:
        _, grads = layers.step(METHODS[name].config(SMALL), SMALL, 9)
        found[name] = flatten(grads[0])["attention.query"]
    for name in METHODS:  # k is more than there are keys and units
        assert_close(found[name], found[DENSE], size=100.0)


def test_a_run_counts_its_parameters() -> None:
    found = layers.measure(TOPK, 20, model=SMALL)
    params, _ = layers.step(METHODS[TOPK].config(SMALL), SMALL, 2)
    assert found.parameters == sum(a.nbytes for b in params for a in flatten(b).values())
    assert found.seconds > 0


def test_dense_methods_stop_where_the_paper_does_and_what_is_done_is_not_run_again(
    made: list[tuple[str, int]],
) -> None:
    done = [taken(TOPK, 8192), taken(DENSE, 4096)]
    found = list(layers.sweep([8192, 4096, 4096], done, NO_LIMITS, lambda text: None))
    assert [(run.method, run.length) for run in found if isinstance(run, Run)] == made
    wanted = {(name, length) for name in METHODS for length in (4096, 8192)}
    wanted -= {(name, 8192) for name, method in METHODS.items() if method.quadratic}
    assert sorted(made) == sorted(wanted - {(TOPK, 8192), (DENSE, 4096)})
    assert LONGEST_DENSE == 4096


def test_what_would_take_too_much_or_fails_is_left_out_with_a_sentence(
    made: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(60, 100 * MEBI)
    done = [taken(name, 2048) for name in METHODS]
    notes = [note for note in layers.sweep([4096], done, limits, print) if isinstance(note, str)]
    assert notes == [
        f"{name} left out at 4,096: it may take 160 MiB" for name in ("dense-heads", DENSE)
    ]
    monkeypatch.setattr(layers, "try_alone", lambda *args: "failed: MemoryError")
    first = next(layers.sweep([8], [], NO_LIMITS, print))
    assert first == "dense-heads left out at 8: failed: MemoryError"


def test_growth_is_told_as_a_power_and_by_the_token() -> None:
    power, each = layers.slopes([taken(TOPK, length) for length in (512, 1024, 2048)])
    assert (round(power, 12), each) == (1.0, 10_000)
    power, _ = layers.slopes([taken(DENSE, length) for length in (512, 1024)])
    assert round(power, 12) == 2.0


def test_the_command_goes_on_where_it_was_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: list[tuple[str, int]]
) -> None:
    arguments = ["bench", "--what", "layers", "--out", str(tmp_path)]
    assert main([*arguments, "--lengths", "1024"]) == 0
    assert len(made) == len(METHODS)
    assert main([*arguments, "--lengths", "1024", "2048"]) == 0
    assert len(made) == 2 * len(METHODS)
    shown = capsys.readouterr().out
    assert "topk at 2,048 takes 0.51 of dense, 0.49 beyond." in shown
    assert ["topk", "1.00", "10", "1,024", "and", "2,048"] in map(str.split, shown.splitlines())
    assert imread(tmp_path / "bench_layers.png").ndim == 3
    page = (tmp_path / "layers.md").read_text().splitlines()
    assert page[0] == "|  | 1,024 | 2,048 | for each 1,024 tokens more |"
    assert "| `topk`: top-k, k = 64 | 12 (10), 2 s | 22 (20), 2 s | 10 |" in page
    data = json.loads((tmp_path / "layers.json").read_text())
    assert data["model"] == layers.PAPER._asdict()
    assert [Run(**run) for run in data["runs"]][-1] == taken("topk-ffn", 2048)


def test_a_file_of_another_machine_or_of_something_else_is_refused(tmp_path: Path) -> None:
    path, machine = tmp_path / "layers.json", {"cpu": "one", "cores": 2}
    assert layers.load_runs(path, machine) == []
    layers.save_runs(path, machine, [taken(TOPK, 512)])
    assert layers.load_runs(path, machine) == [taken(TOPK, 512)]
    with pytest.raises(UserError, match=r"is of another machine, one, 2 cores: move it away"):
        layers.load_runs(path, {"cpu": "other", "cores": 2})
    path.write_text("{}")
    with pytest.raises(UserError, match="not a file of this command"):
        layers.load_runs(path, machine)


@pytest.mark.parametrize("name", [TOPK, "no such method"])
def test_a_run_alone_is_one_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = []

    def run_alone(*job: object, limit: float) -> tuple[Run, int]:
        asked.append((*job, limit))
        if name != TOPK:
            raise RunFailed(f"failed: KeyError: {name!r}")
        return taken(TOPK, 8), 0

    monkeypatch.setattr(layers, "run_alone", run_alone)
    found = layers.try_alone(name, 8, 1)
    assert asked == [(layers.measure, name, 8, 1)]
    assert found == (taken(TOPK, 8) if name == TOPK else "failed: KeyError: 'no such method'")
