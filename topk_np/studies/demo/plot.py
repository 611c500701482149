"""The demo's picture: perplexity and memory of attention against k."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topk_np._plots import COLOURS, STYLE
from topk_np.studies.demo.experiment import Row

TOPK, DENSE = COLOURS[:2]
MEBI = 2**20


def save_plot(path: Path, rows: Sequence[Row], name: str, text: str, /) -> None:
    """Draw the rows of attention against k, with dense attention as a dashed line, and save."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4.8), layout="constrained")
        figure.suptitle(
            f"{name} with top-k attention, no retraining",
            x=0.012,
            ha="left",
            weight="bold",
            size=14,
        )
        quality, memory = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
        _panel(quality, rows, [row.perplexity for row in rows], f"Perplexity on {text}")
        _panel(
            memory,
            rows,
            [row.scratch / MEBI for row in rows],
            "Peak scratch of attention, MiB a layer",
        )
        memory.set_ylim(bottom=0)
        figure.savefig(path, dpi=160)


def _panel(axes: Any, rows: Sequence[Row], values: Sequence[float], title: str) -> None:
    """Values against k; the first row is the dense model."""
    dense = values[0]
    points = [
        (row.attention_k, value)
        for row, value in zip(rows, values, strict=True)
        if row.attention_k is not None
    ]
    ks, heights = zip(*sorted(points), strict=True)
    axes.set_title(title)
    axes.axhline(dense, color=DENSE, linestyle="--", linewidth=1.6)
    axes.plot(ks, heights, color=TOPK, marker="o", markersize=6, linewidth=2.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.14)
    axes.set_xlabel("k, keys kept for each query")
    falling = heights[0] > heights[-1]
    for k, height in zip(ks, heights, strict=True):
        # on the outer side of the curve, where it does not run through the number
        axes.annotate(
            f"{height:.1f}",
            (k, height),
            (5 if falling else -5, 6),
            textcoords="offset points",
            ha="left" if falling else "right",
            color=TOPK,
        )
    axes.annotate(
        f"dense {dense:.1f}",
        (0.01, dense),
        (0, 6 if dense < max(heights) else -6),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="bottom" if dense < max(heights) else "top",
        color=DENSE,
    )
