"""The program ``python -m topk_np bench``: time and memory against other ways to compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from topk_np._process import UserError, describe_machine, make_folder, total_memory
from topk_np.bench.cases import ATTENTION, FFN, FFN_CASES, LENGTHS, MODES, Case, attention_cases
from topk_np.bench.peers import OURS, PEERS, Peer

if TYPE_CHECKING:
    from topk_np._process import Machine, Tick
    from topk_np.bench.sweep import Limits, Row

Found = TypeVar("Found")

FIGURES, MODEL, LAYERS = "figures", "model", "layers"
TIME_LIMIT, TIME_LIMIT_LAYERS = 60, 7200
SHOWN = 0.1  # seconds: quick runs take turns thousands of times


def run(
    *,
    what: str,
    lengths: Sequence[int] | None,
    repeats: int,
    peers: Sequence[str] | None,
    time_limit: int | None,
    memory_limit: int | None,
    out: Path,
    plots: Path | None,
) -> None:
    """
    Measure, print the tables, and save JSON files and plots.

    Parameters
    ----------
    what : str
        "attention", "ffn", "figures", "all" of these, "model", or "layers".
    lengths : sequence of int, optional
        Of attention, or of the sequence that goes through layers.
    repeats : int
        Rounds that are timed; slow ones are fewer.
    peers : sequence of str, optional
        Names of `PEERS`, by default all; topk_np is always among them.
    time_limit : int, optional
        Seconds that one run of a peer may take, by default 60; of "layers" 7,200.
    memory_limit : int, optional
        MiB that one run of a peer may take, by default half of the machine's memory.
    out : Path
        Folder for the JSON files.
    plots : Path, optional
        Folder for the plots, by default `out`.

    Raises
    ------
    UserError
        With a message of one line.
    """
    chosen = _chosen(peers)
    plots = out if plots is None else plots
    make_folder("--out", out)
    make_folder("--plots", plots)

    # Only now, as these take a while to import.
    from topk_np.bench import report
    from topk_np.bench.sweep import Limits

    most = total_memory() // 2 if memory_limit is None else memory_limit * 2**20
    usual = TIME_LIMIT_LAYERS if what == LAYERS else TIME_LIMIT
    limits = Limits(usual if time_limit is None else time_limit, most)
    described = describe_machine()
    print(report.heading(described))
    if what == MODEL:
        _model(repeats, out, described)
    if what == LAYERS:
        _layers(lengths, limits, out, plots, described)
    if what in (ATTENTION, "all"):
        cases = [
            case for causal in (False, True) for case in attention_cases(lengths or LENGTHS, causal)
        ]
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
        raise UserError(f"--peers must be among {' '.join(PEERS)}, got {wrong[0]!r}")
    wanted = PEERS.keys() if names is None else {OURS, *names}
    return [peer for name, peer in PEERS.items() if name in wanted]


def _gather(
    name: str,
    total: int | None,
    measure: Callable[[Tick], Iterator[Found]],
    save: Callable[[list[Found]], None],
) -> list[Found]:
    """Measure with a bar, and save after each result: an interrupted run leaves what it has."""
    from tqdm import tqdm

    found: list[Found] = []
    with tqdm(total=total, desc=name, leave=False) as bar:
        for one in measure(_shown(bar)):
            found.append(one)
            save(found)
            bar.update()
    return found


def _shown(bar: Any) -> Tick:
    """Show at the end of the bar what runs next, once in `SHOWN` seconds at most."""
    last = float("-inf")

    def tick(name: str) -> None:
        nonlocal last
        bar.set_postfix_str(name, refresh=False)
        if perf_counter() - last >= SHOWN:
            bar.refresh()
            last = perf_counter()

    return tick


def _sweep(
    what: str,
    cases: Sequence[Case],
    peers: Sequence[Peer],
    limits: Limits,
    repeats: int,
    out: Path,
    machine: Machine,
) -> list[Row]:
    """Measure a series of cases."""
    from topk_np.bench import report
    from topk_np.bench.sweep import Entrants, sweep

    path, notes = out / f"{what}.json", list[str]()
    entrants = Entrants(peers, limits, notes.append)

    def save(found: list[list[Row]]) -> None:
        rows = [report.as_data(row) for some in found for row in some]
        report.save_json(path, machine, notes=notes, rows=rows)

    total = len(cases) * len(MODES)
    found = _gather(what, total, lambda tick: sweep(cases, entrants, repeats, tick), save)
    rows = [row for some in found for row in some]
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
    """Measure the figures that the library is held to."""
    from topk_np.bench import figures, report

    path, total = out / "figures.json", len(figures.FIGURES)

    def save(outcomes: list[figures.Outcome]) -> None:
        report.save_json(path, machine, figures=[figures.summary(one) for one in outcomes])

    outcomes = _gather(
        FIGURES, total, lambda tick: figures.check(figures.FIGURES, repeats, tick), save
    )
    print(report.figures_table(outcomes))
    print(f"Data: {path}")


def _model(repeats: int, out: Path, machine: Machine) -> None:
    """Measure a pretrained model."""
    from topk_np.bench import model, report

    path = out / "model.json"

    def save(findings: list[model.Finding]) -> None:
        report.save_json(path, machine, figures=[model.as_data(one) for one in findings])

    findings = _gather(MODEL, None, lambda tick: model.measure(model.PACKAGED, repeats, tick), save)
    print(model.table(findings))
    print(f"Data: {path}")


def _layers(
    lengths: Sequence[int] | None, limits: Limits, out: Path, plots: Path, machine: Machine
) -> None:
    """Measure the memory of a deep model: the runs that are missing in the file."""
    from topk_np.bench import layers
    from topk_np.bench.plots import save_layers

    path, picture = out / f"{LAYERS}.json", plots / "bench_layers.png"
    done = layers.load_runs(path, machine)
    wanted = layers.LENGTHS if lengths is None else lengths

    def runs(found: list[layers.Run | str]) -> list[layers.Run]:
        return [*done, *(one for one in found if isinstance(one, layers.Run))]

    found = _gather(
        LAYERS,
        None,
        lambda tick: layers.sweep(wanted, done, limits, tick),
        lambda found: layers.save_runs(path, machine, runs(found)),
    )
    if runs(found):
        print(layers.table(runs(found)))
        path.with_suffix(".md").write_text(layers.markdown(runs(found)))
        save_layers(picture, runs(found), machine)
        print(f"Plot: {picture}")
    notes = (f"{note}\n" for note in found if isinstance(note, str))
    print("".join(notes) + f"Data: {path}")
