"""The deep model's memory against length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from topk_np._process import Machine
from topk_np.bench.layers import DENSE, METHODS, PAPER, TOPK, Run
from topk_np.bench.plots import QUIET, STYLE, Points, machine_line, memory_name, panel

MEBI = 2**20
COLOURS = {
    "dense-heads": "#d55e00",
    DENSE: "#e69f00",
    "chunked": "#a06a00",
    "chunked-budget": "#6a51a3",
    TOPK: "#0072b2",
    "topk-ffn": "#56b4e9",
}


def save_plot(path: Path, runs: Sequence[Run], machine: Machine) -> None:
    """Draw the peak beyond parameters and gradients, and all of it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(12.5, 5.6))
        figure.subplots_adjust(left=0.065, right=0.855, bottom=0.165, top=0.82, wspace=0.6)
        figure.text(
            0.012,
            0.94,
            f"{PAPER.layers} layers, {PAPER.heads} heads, width {PAPER.width}, causal, forward + "
            "backward: peak memory, log scales",
            weight="bold",
            size=14,
        )
        figure.text(0.012, 0.02, machine_line(machine), color=QUIET, size=9)
        beyond, whole = figure.subplots(1, 2)
        for axes, title, memory in (
            (beyond, "Beyond parameters and their gradients", lambda run: run.beyond),
            (whole, "Whole process, beyond imports", lambda run: run.memory),
        ):
            panel(
                axes,
                _points(runs, memory),
                title,
                memory_name,
                2,
                colours=COLOURS,
                thick=TOPK,
                across="tokens of the sequence",
            )
        figure.savefig(path, dpi=160)


def _points(runs: Sequence[Run], memory: Callable[[Run], int]) -> Points:
    ordered = sorted(runs, key=lambda run: run.length)
    points: Points = {
        name: [(run.length, memory(run) / MEBI) for run in ordered if run.method == name]
        for name in METHODS
    }
    return {name: line for name, line in points.items() if line}
