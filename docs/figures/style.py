"""The style that the curves of the documentation have in common."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Told apart by who does not see red and green, and in print: by lightness and by markers too.
INK, GREY, BLUE, ORANGE = "#1f2933", "#6b7280", "#0072b2", "#d55e00"
DATA = Path(__file__).parents[1] / "data"


def axes(width: float, height: float) -> Axes:
    """Axes of a new figure, of so many inches."""
    mpl.rcParams.update(
        {"svg.hashsalt": "topk", "text.color": INK, "axes.labelcolor": INK, "font.size": 10}
    )
    ax = Figure(figsize=(width, height), layout="constrained").add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.grid(color="#e5e7eb", linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def save(ax: Axes, script: str) -> None:
    """Write the figure of `ax` beside its script, always the same bytes."""
    path = Path(script).with_suffix(".svg")
    ax.figure.savefig(path, metadata={"Date": None})
    print(path)
