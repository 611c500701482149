"""Log-log plots of time and memory against length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from topk_np._plots import PALE, QUIET, STYLE
from topk_np._process import MEBI, Machine
from topk_np.bench import layers
from topk_np.bench.cases import ATTENTION, MODES
from topk_np.bench.peers import (
    CHUNKED,
    GATHER,
    GEMM,
    NUMPY,
    OURS,
    PAPER,
    PEERS,
    PERFORMER,
    RFA,
    SDPA,
    TORCH,
)
from topk_np.bench.sweep import Row

# Colour-blind readers can tell the peers of a plot apart, and all of them by their labels.
COLOURS = {
    OURS: "#0072b2",
    NUMPY: "#e69f00",
    CHUNKED: "#a06a00",
    PERFORMER: "#6a51a3",
    RFA: "#000000",
    SDPA: "#d55e00",
    TORCH: "#cc79a7",
    PAPER: "#009e73",
    GATHER: "#56b4e9",
    GEMM: QUIET,
    "dense-heads": "#d55e00",
    layers.DENSE: "#e69f00",
    "chunked": "#a06a00",
    "chunked-budget": "#6a51a3",
    layers.TOPK: "#0072b2",
    "topk-ffn": "#56b4e9",
}
THICK = (OURS, layers.TOPK)  # of the lines in a plot
LEAST_MEMORY = 1.0  # MiB; what is measured below it is chance
LINE = 0.055  # height of a label, as a share of the axes

Points = dict[str, list[tuple[float, float]]]
"""Lengths and heights by the name of the line."""
Panel = Callable[[Any], None]
"""Draws into axes."""


def save_plots(folder: Path, rows: Sequence[Row], machine: Machine, /) -> list[Path]:
    """Draw attention, one file for each mode, causal and not; return the paths."""
    paths = []
    for causal in (False, True):
        for mode in MODES:
            found = [
                row
                for row in rows
                if (row.case.kind, row.case.causal, row.mode) == (ATTENTION, causal, mode)
            ]
            if found:
                words = ["bench", "causal" if causal else "full", mode.replace("+", "_")]
                path = folder / f"{'_'.join(words)}.png"
                _save_attention(path, found, machine)
                paths.append(path)
    return paths


def _save_attention(path: Path, rows: Sequence[Row], machine: Machine) -> None:
    case, mode = rows[0].case, rows[0].mode
    causal = "Causal attention" if case.causal else "Attention, not causal"
    title = (
        f"{causal}, {mode.replace('+', ' + ')}: {case.heads} heads of width {case.width}, "
        "k = 64, float32"
    )

    def points(heights: Sequence[float]) -> Points:
        found: Points = {}
        for row, height in zip(rows, heights, strict=True):
            found.setdefault(row.peer, []).append((row.case.keys, height))
        return {name: found[name] for name in PEERS if name in found}

    seconds = points([row.median for row in rows])
    memory = points([max(row.memory / MEBI, LEAST_MEMORY) for row in rows])
    across = "length: queries and keys of a head"
    panels = (
        partial(panel, seconds, "Time, log scale", _time_name, 10, across),
        partial(panel, memory, "Peak memory beyond the inputs, log scale", memory_name, 4, across),
    )
    note = f"{machine_line(machine)} Medians; peers take turns."
    _save(path, title, note, panels, right=0.875, wspace=0.52)


def save_layers(path: Path, runs: Sequence[layers.Run], machine: Machine) -> None:
    """Draw the memory of a deep model: beyond parameters and gradients, and all of it."""
    model, across = layers.PAPER, "tokens of the sequence"
    title = (
        f"{model.layers} layers, {model.heads} heads, width {model.width}, causal, forward + "
        "backward: peak memory, log scales"
    )

    def points(memory: Callable[[layers.Run], int]) -> Points:
        found: Points = {}
        for run in sorted(runs, key=lambda run: run.length):
            found.setdefault(run.method, []).append((run.length, memory(run) / MEBI))
        return {name: found[name] for name in layers.METHODS if name in found}

    beyond, whole = points(lambda run: run.beyond), points(lambda run: run.memory)
    words = "Beyond parameters and their gradients", "Whole process, beyond imports"
    panels = (
        partial(panel, beyond, words[0], memory_name, 2, across),
        partial(panel, whole, words[1], memory_name, 2, across),
    )
    _save(path, title, machine_line(machine), panels, right=0.855, wspace=0.6)


def _save(
    path: Path, title: str, note: str, panels: Sequence[Panel], *, right: float, wspace: float
) -> None:
    """Save a figure of two panels, with room for names at the right of each."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(12.5, 5.6))
        figure.subplots_adjust(left=0.065, right=right, bottom=0.165, top=0.82, wspace=wspace)
        figure.text(0.012, 0.94, title, weight="bold", size=14)
        figure.text(0.012, 0.02, note, color=QUIET, size=9)
        for axes, draw in zip(figure.subplots(1, 2), panels, strict=True):
            draw(axes)
        figure.savefig(path, dpi=160)


def panel(
    points: Points,
    title: str,
    name_of: Callable[[float], str],
    step: int,
    across: str,
    axes: Any,
    /,
) -> None:
    """Draw a line for each name; a tick of the height at each power of `step`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_title(title)
    for name, line in points.items():
        lengths, heights = zip(*line, strict=True)
        ours = name in THICK
        axes.plot(
            lengths,
            heights,
            color=COLOURS[name],
            linewidth=3 if ours else 1.6,
            linestyle="--" if name == GEMM else "-",
            marker="o",
            markersize=6 if ours else 4,
            zorder=3 if ours else 2,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({length for line in points.values() for length, _ in line})
    axes.set_xticks(ticks, [_length_name(length) for length in ticks])
    axes.set_xlabel(across)
    axes.yaxis.set_major_locator(LogLocator(step))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda height, _: name_of(height)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=PALE, linewidth=0.7)
    axes.margins(x=0.04, y=0.08)
    _label(axes, {name: line[-1] for name, line in points.items()})


def _label(axes: Any, ends: dict[str, tuple[float, float]]) -> None:
    """Name each line in the right margin, level with its end where there is room."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    left, right = (math.log(limit) for limit in axes.get_xlim())

    def place(end: tuple[float, float]) -> tuple[float, float]:
        across = (math.log(end[0]) - left) / (right - left)
        return across, (math.log(end[1]) - low) / (high - low)

    places = {name: place(end) for name, end in ends.items()}
    names = sorted(places, key=lambda name: places[name][1])
    for name, height in zip(names, spread([places[name][1] for name in names], LINE), strict=True):
        axes.annotate(
            name,
            places[name],
            (1.05, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=COLOURS[name],
            weight="bold" if name in THICK else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": COLOURS[name],
                "alpha": 0.5,
                "relpos": (0, 0.5),
            },
        )


def spread(heights: Sequence[float], gap: float, /) -> list[float]:
    """Ascending heights moved as little as is needed for neighbours to be `gap` apart."""
    # Groups of touching labels, each centred on what its members ask for.
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while (
            len(groups) > 1
            and _middle(groups[-1]) - _middle(groups[-2])
            < gap * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [
        _middle(group) + gap * (i - (len(group) - 1) / 2)
        for group in groups
        for i in range(len(group))
    ]


def _middle(group: Sequence[float]) -> float:
    return sum(group) / len(group)


def _length_name(length: float) -> str:
    return f"{length // 1024:.0f}k" if length % 1024 == 0 else f"{length:.0f}"


def _time_name(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.999 * size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds * 1e6:g} µs"


def memory_name(mebi: float) -> str:
    """MiB in few characters."""
    return f"{mebi / 1024:.3g} GiB" if mebi >= 1024 else f"{mebi:g} MiB"


def machine_line(machine: Machine) -> str:
    """The machine, the versions and the date of the measurements."""
    torch = f", PyTorch {machine['torch']}" if machine["torch"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores. Python {machine['python']}, NumPy "
        f"{machine['numpy']}{torch}. {machine['date']}."
    )
