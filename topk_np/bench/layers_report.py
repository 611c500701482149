"""The tables and the data of the deep model's memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from topk_np._process import Machine, UserError
from topk_np.bench.layers import DENSE, METHODS, PAPER, TOPK, Run, slopes
from topk_np.bench.report import duration, save_json

MEBI = 2**20
LABEL, COLUMN = 16, 12


def save_runs(path: Path, machine: Machine, runs: Sequence[Run]) -> None:
    """Write all runs; a reader never sees half of them."""
    part = path.with_suffix(".part")
    save_json(part, machine, model=PAPER._asdict(), runs=[run._asdict() for run in runs])
    part.replace(path)


def load_runs(path: Path, machine: Machine) -> list[Run]:
    """The runs of earlier sittings; none if there were none."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
        before, runs = found["machine"], [Run(**run) for run in found["runs"]]
        same = all(before[name] == machine[name] for name in ("cpu", "cores"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a file of this command; move it away") from error
    if not same:
        raise UserError(
            f"{path} is of another machine, {before['cpu']}, {before['cores']} cores: move it "
            "away, or name another folder with --out"
        )
    return runs


def table(runs: Sequence[Run]) -> str:
    """Memory, time and slopes; a line for each method, a column for each length."""
    lengths = sorted({run.length for run in runs})
    cells = {(run.method, run.length): run for run in runs}
    names = [name for name in METHODS if any(run.method == name for run in runs)]
    title = (
        f"{PAPER.layers} layers, d = {PAPER.width}, d_ff = {PAPER.hidden}, {PAPER.heads} heads, "
        "causal, forward+backward, one sequence"
    )
    lines = [title, "-" * (LABEL + COLUMN * len(lengths))]

    def block(what: str, show: Callable[[Run], str]) -> None:
        lines.append(f"{what:{LABEL}}" + "".join(f"{length:>{COLUMN},}" for length in lengths))
        for name in names:
            found = (cells.get((name, length)) for length in lengths)
            words = ("-" if run is None else show(run) for run in found)
            lines.append(f"{name:{LABEL}}" + "".join(f"{word:>{COLUMN}}" for word in words))

    def of_dense(run: Run) -> str:
        dense = cells.get((DENSE, run.length))
        return "-" if dense is None else f"{run.beyond / dense.beyond:.2f}"

    block("peak, MiB", lambda run: f"{run.memory / MEBI:,.0f}")
    block("beyond, MiB", lambda run: f"{run.beyond / MEBI:,.0f}")
    block("beyond / dense", of_dense)
    block("time", lambda run: duration(run.seconds))
    block("CPU time", lambda run: duration(run.cpu_seconds))
    lines.append(f"{'growth':{LABEL}}{'length^':>{COLUMN}}{'MiB/1,024':>{COLUMN}}  between")
    for name in names:
        own = sorted(run.length for run in runs if run.method == name)[-2:]
        if len(own) == 2:
            power, each = slopes([cells[name, length] for length in own])
            lines.append(
                f"{name:{LABEL}}{power:>{COLUMN}.2f}{each * 1024 / MEBI:>{COLUMN}.0f}  "
                f"{own[0]:,} and {own[1]:,}"
            )
    lines += ["", *(f"{name:{LABEL}}{METHODS[name].what}" for name in names), *_verdict(cells)]
    return "\n".join(lines) + "\n"


def markdown(runs: Sequence[Run]) -> str:
    """The same for a page: in each cell the peak, in brackets what is beyond, and CPU time."""
    lengths = sorted({run.length for run in runs})
    head = ["", *(f"{length:,}" for length in lengths), "for each 1,024 tokens more"]
    lines = [head, ["---"] * len(head)]
    for name, method in METHODS.items():
        own = {run.length: run for run in runs if run.method == name}
        if own:
            cells = ("" if length not in own else _cell(own[length]) for length in lengths)
            lines.append([f"`{name}`: {method.what}", *cells, _growth(list(own.values()))])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(run: Run) -> str:
    return f"{run.memory / MEBI:,.0f} ({run.beyond / MEBI:,.0f}), {run.cpu_seconds:.0f} s"


def _growth(runs: list[Run]) -> str:
    """Between the two longest."""
    return f"{slopes(runs)[1] * 1024 / MEBI:,.0f}" if len(runs) > 1 else ""


def _verdict(cells: dict[tuple[str, int], Run]) -> list[str]:
    """How to read the table."""
    (run, *_) = cells.values()
    held = 2 * run.parameters / MEBI
    lines = [
        "Peak: of a process of its own, beyond its imports. Beyond: without the parameters and",
        f"their gradients, {held:,.0f} MiB, which are the same for all.",
    ]
    for other in METHODS:
        both = [length for name, length in cells if name == TOPK and (other, length) in cells]
        if both and other != TOPK:
            length = max(both)
            topk, than = cells[TOPK, length], cells[other, length]
            lines.append(
                f"{TOPK} at {length:,} takes {topk.memory / than.memory:.2f} of {other}, "
                f"{topk.beyond / than.beyond:.2f} beyond."
            )
    return lines
