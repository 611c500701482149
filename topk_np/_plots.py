"""Colours, style and curves that the plots of programs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, QUIET, PALE = "#1f2933", "#616e7c", "#cbd2d9"
# Colour-blind readers can tell them apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a06a00")
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.titlesize": 12,
    "legend.frameon": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
}


def curves(axes: Any, series: Mapping[str, Mapping[int, float]], /) -> None:
    """A curve with a name for each series of heights by k, on an axis of powers of 2."""
    for (name, heights), colour in zip(series.items(), COLOURS, strict=False):
        ks = sorted(heights)
        if ks:
            axes.plot(ks, [heights[k] for k in ks], color=colour, marker="o", label=name)
    ks = sorted({k for heights in series.values() for k in heights})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [f"{k:,}" for k in ks])
    axes.minorticks_off()
    axes.margins(x=0.06, y=0.1)
    axes.set_xlabel("k")
    if ks:
        axes.legend()


def ratios(axes: Any, ticks: Sequence[float], /) -> None:
    """A logarithmic axis of ratios to the dense model, of which the first tick is that model."""
    axes.set_yscale("log")
    low, high = ticks[0], ticks[-1]
    axes.set_ylim(low * (low / high) ** 0.08, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def dense_line(axes: Any, height: float, /, *, above: bool) -> None:
    """A dashed line at the dense model's height, with its name where the curves are not."""
    axes.axhline(height, color=QUIET, linestyle="--", linewidth=1, zorder=0)
    axes.annotate(
        "dense",
        (0.995, height),
        (0, 2 if above else -2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        size=9,
        color=QUIET,
    )


def columns(count: int, /) -> tuple[Figure, Sequence[Any]]:
    """A figure with some panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * count, 4.2), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]
