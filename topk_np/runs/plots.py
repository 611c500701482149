"""Pictures of runs: loss and accuracy against steps and time, accuracy against k at test time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from topk_np._plots import COLOURS, QUIET, STYLE
from topk_np.runs.records import Line

WINDOW = 50  # steps whose mean is one point of a curve
NEAR = 0.05  # of the height of a panel, which a name takes


def plot_training(
    path: Path, title: str, runs: Mapping[str, Sequence[Line]], baselines: Mapping[str, float]
) -> None:
    """Loss of the batches and accuracy on the validation split, against steps and against time."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(11, 8), layout="constrained")
        figure.suptitle(title, x=0.012, ha="left", weight="bold", size=14)
        panels = figure.subplots(2, 2, sharey="row")
        for (name, lines), colour in zip(runs.items(), COLOURS, strict=False):
            steps = [line for line in lines if "split" not in line]
            known, seconds = zip(*((line["step"], line["seconds"]) for line in steps), strict=True)
            tested = [line for line in lines if line.get("split") == "validation"]
            smooth = _means(steps)
            for row, (points, what) in enumerate(((smooth, "loss"), (tested, "accuracy"))):
                at = [point["step"] for point in points]
                for column, places in enumerate((at, np.interp(at, known, seconds))):
                    heights = [point[what] for point in points]
                    panels[row][column].plot(places, heights, color=colour, label=name)
        for axes, label in zip(panels[1], ("step", "seconds of training"), strict=True):
            axes.set_xlabel(label)
            _baselines(axes, baselines)
        panels[0][0].set_title("Loss of the batches")
        panels[1][0].set_title("Accuracy on the validation split")
        panels[0][1].legend()
        figure.savefig(path, dpi=130)


def plot_swaps(
    path: Path,
    title: str,
    runs: Mapping[str, Mapping[str, float]],
    baselines: Mapping[str, float],
) -> None:
    """Accuracy on the test split against the k of attention at test time, dense at the right."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.8), layout="constrained")
        figure.suptitle(title, x=0.012, ha="left", weight="bold", size=14)
        axes = figure.subplots()
        ks = sorted({int(k) for swaps in runs.values() for k in swaps if k != "dense"})
        places = {str(k): i for i, k in enumerate(ks)} | {"dense": len(ks)}
        for (name, swaps), colour in zip(runs.items(), COLOURS, strict=False):
            known = sorted(swaps, key=places.__getitem__)
            heights = [swaps[k] for k in known]
            axes.plot([places[k] for k in known], heights, color=colour, marker="o", label=name)
        axes.set_xticks(list(places.values()), list(places))
        axes.set_xlabel("keys kept for each query at test time")
        axes.set_title("Accuracy on the test split")
        axes.margins(x=0.06, y=0.12)
        _baselines(axes, baselines)
        axes.legend()
        figure.savefig(path, dpi=130)


def _means(lines: Sequence[Line]) -> list[Line]:
    """The mean loss of each stretch of steps, at the last of them."""
    window = max(1, min(WINDOW, len(lines) // 20))
    whole = [lines[i : i + window] for i in range(0, len(lines), window)]
    return [
        {"step": some[-1]["step"], "loss": float(np.mean([line["loss"] for line in some]))}
        for some in whole
    ]


def _baselines(axes: Any, baselines: Mapping[str, float]) -> None:
    """A dashed line for what needs no model; lines too near for two names share one place."""
    for accuracy in baselines.values():
        axes.axhline(accuracy, color=QUIET, linestyle="--", linewidth=1)
    low, high = axes.get_ylim()
    names: dict[float, list[str]] = {}
    for name, accuracy in sorted(baselines.items(), key=itemgetter(1), reverse=True):
        last = min(names, default=np.inf)
        place = last if last - accuracy < NEAR * (high - low) else accuracy
        names.setdefault(place, []).append(name)
    for place, together in names.items():
        axes.annotate(
            ", ".join(together),
            (0, place),
            (4, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="bottom",
            size=9,
            color=QUIET,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.5},
        )
