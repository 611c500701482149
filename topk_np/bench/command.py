"""What ``python -m topk_np bench`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from topk_np.bench.cases import (
    ATTENTION,
    FFN,
    FFN_CASES,
    MODES,
    BenchError,
    Case,
    attention_cases,
)
from topk_np.bench.peers import OURS, PEERS, Peer

if TYPE_CHECKING:
    from topk_np.bench.machine import Machine
    from topk_np.bench.sweep import Limits, Row

FIGURES, MODEL = "figures", "model"


def run(
    *,
    what: str,
    lengths: Sequence[int],
    repeats: int,
    peers: Sequence[str] | None,
    time_limit: int,
    memory_limit: int | None,
    out: Path,
    plots: Path | None,
) -> None:
    """
    Measure, print the tables, and save JSON files and plots.

    Parameters
    ----------
    what : str
        "attention", "ffn", "figures", "all" of these, or "model".
    lengths : sequence of int
        Of attention.
    repeats : int
        Rounds that are timed; slow ones are fewer.
    peers : sequence of str, optional
        Names of `PEERS`, by default all; topk_np is always among them.
    time_limit : int
        Seconds that one run of a peer may take.
    memory_limit : int, optional
        MiB that one run of a peer may take, by default half of the machine's memory.
    out : Path
        Folder for the JSON files.
    plots : Path, optional
        Folder for the plots, by default `out`.

    Raises
    ------
    BenchError
        With a message of one line.
    """
    chosen = _chosen(peers)
    plots = out if plots is None else plots
    _make_folder("--out", out)
    _make_folder("--plots", plots)

    # Only now, as these take a while to import.
    from topk_np.bench import machine, report
    from topk_np.bench.sweep import Limits

    most = machine.total_memory() // 2 if memory_limit is None else memory_limit * 2**20
    limits = Limits(time_limit, most)
    described = machine.describe_machine()
    print(report.heading(described))
    if what == MODEL:
        _model(repeats, out, described)
    if what in (ATTENTION, "all"):
        cases = [case for causal in (False, True) for case in attention_cases(lengths, causal)]
        rows = _sweep(ATTENTION, cases, chosen, limits, repeats, out, described)
        _plot(plots, rows, described)
    if what in (FFN, "all"):
        _sweep(FFN, FFN_CASES, chosen, limits, repeats, out, described)
    if what in (FIGURES, "all"):
        _figures(repeats, out, described)


def _chosen(names: Sequence[str] | None) -> list[Peer]:
    """The peers of these names, and topk_np first."""
    wrong = [name for name in names or () if name not in PEERS]
    if wrong:
        raise BenchError(f"--peers must be among {' '.join(PEERS)}, got {wrong[0]!r}")
    wanted = PEERS.keys() if names is None else {OURS, *names}
    return [peer for name, peer in PEERS.items() if name in wanted]


def _make_folder(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{option} {folder}: {error.strerror}") from error


def _sweep(
    what: str,
    cases: Sequence[Case],
    peers: Sequence[Peer],
    limits: Limits,
    repeats: int,
    out: Path,
    machine: Machine,
) -> list[Row]:
    """Measure, save after each case so that an interrupted run leaves what it has, and print."""
    from tqdm import tqdm

    from topk_np.bench import report
    from topk_np.bench.sweep import Entrants, sweep

    path = out / f"{what}.json"
    notes: list[str] = []
    rows: list[Row] = []
    entrants = Entrants(peers, limits, notes.append)
    with tqdm(total=len(cases) * len(MODES), desc=what, leave=False) as bar:
        for found in sweep(cases, entrants, repeats, bar.set_postfix_str):
            rows += found
            report.save_json(path, machine, notes=notes, rows=[report.as_data(row) for row in rows])
            bar.update()
    if rows:
        print(report.tables(rows))
    print("".join(f"{note}\n" for note in notes) + f"Data: {path}\n")
    return rows


def _plot(folder: Path, rows: Sequence[Row], machine: Machine) -> None:
    from topk_np.bench.plots import save_plots

    for path in save_plots(folder, rows, machine):
        print(f"Plot: {path}")
    print()


def _figures(repeats: int, out: Path, machine: Machine) -> None:
    from tqdm import tqdm

    from topk_np.bench import figures, report

    path = out / "figures.json"
    outcomes: list[figures.Outcome] = []
    with tqdm(total=len(figures.FIGURES), desc=FIGURES, leave=False) as bar:
        for outcome in figures.check(figures.FIGURES, repeats, bar.set_postfix_str):
            outcomes.append(outcome)
            found = [figures.summary(one) for one in outcomes]
            report.save_json(path, machine, figures=found)
            bar.update()
    print(report.figures_table(outcomes))
    print(f"Data: {path}")


def _model(repeats: int, out: Path, machine: Machine) -> None:
    from tqdm import tqdm

    from topk_np.bench import model, report
    from topk_np.models.fetch import FetchError
    from topk_np.models.named import ModelError

    path = out / "model.json"
    findings: list[model.Finding] = []
    try:
        with tqdm(desc=MODEL, leave=False) as bar:
            for finding in model.measure(model.PACKAGED, repeats, bar.set_postfix_str):
                findings.append(finding)
                report.save_json(path, machine, figures=[model.as_data(one) for one in findings])
                bar.update()
    except (FetchError, ModelError) as error:
        raise BenchError(str(error)) from error
    print(model.table(findings))
    print(f"Data: {path}")
