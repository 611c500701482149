"""Draw the one picture of the idea: `python docs/figures/topk.py` writes topk.png and topk.svg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from topk_np import topk_attention_fwd

# The problem that is drawn: Q queries, N keys, k kept, chunks of C queries.
Q, N, K, C = 16, 28, 3, 4
D, V = 8, 4
NOW = slice(C, 2 * C)  # the chunk at work

# The curves: bytes of one head, float32.
LENGTHS = 2 ** np.arange(10, 17)
CURVE_K, CURVE_C = 64, 256

WIDTH, HEIGHT, CELL = 10.0, 7.3, 0.2  # inches
TOP = 6.4  # of the matrices
SCORES, KEPT, INDICES, OUT = 0.6, 6.65, 7.5, 8.8  # their left edges
KEPT_CELL, INDEX_CELL = 0.25, 0.3

INK, GREY, ORANGE, RUST = "#1f2933", "#4b5563", "#ff8c1a", "#b5450b"
BLUES = LinearSegmentedColormap.from_list("blues", ["#e3eef9", "#5b9bd5", "#0b3c6f"])
GREENS = LinearSegmentedColormap.from_list("greens", ["#dcefe8", "#2a9d78", "#00523c"])
TEXT, SMALL = 14, 12.5


def make_problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries that look near the diagonal, and at one key in common."""
    rng = np.random.default_rng(7)

    def positions(length: int) -> np.ndarray:
        angles = np.pi * np.outer((np.arange(length) + 0.5) / length, (1, 3, 6))
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

    query, key = (np.pad(positions(length), ((0, 0), (0, 2))) for length in (Q, N))
    query[:, 6] = 1
    key[2, 6] = 2
    query, key = (array + 0.3 * rng.normal(size=array.shape) for array in (query, key))
    return query, key, rng.normal(size=(N, V))


def faded(colours: np.ndarray, strength: float) -> np.ndarray:
    """The colours, mixed with white."""
    return 1 - strength * (1 - colours)


def draw_cells(ax: Axes, left: float, row: int, colours: np.ndarray, width: float = CELL) -> None:
    """Draw a cell for each entry of colours (rows, columns, 4), from `row` downwards."""
    style: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.8}
    for i, line in enumerate(colours, start=row + 1):
        for j, colour in enumerate(line):
            corner = (left + j * width, TOP - i * CELL)
            ax.add_patch(Rectangle(corner, width, CELL, facecolor=colour, **style))


def draw_outline(ax: Axes, left: float, width: float, rows: slice, **style: Any) -> None:
    """Draw a rectangle around some rows."""
    corner = (left, TOP - rows.stop * CELL)
    height = (rows.stop - rows.start) * CELL
    ax.add_patch(Rectangle(corner, width, height, fill=False, joinstyle="miter", **style))


def draw_idea(ax: Axes) -> None:
    """Draw the scores, what is kept of them, and the output, at the moment of one chunk."""
    query, key, value = make_problem()
    out, residuals = topk_attention_fwd(query, key, value, k=K, chunk_size=C)
    scores = query @ key.T / np.sqrt(D)
    blue = PowerNorm(2, scores.min(), scores.max())
    green = Normalize(out.min(), out.max())

    # The scores: one chunk in full colour, its k largest framed.
    everything = slice(0, Q)
    colours = BLUES(blue(scores))
    draw_cells(ax, SCORES, 0, faded(colours, 0.22))
    draw_cells(ax, SCORES, NOW.start, colours[NOW])
    for row in range(NOW.start, NOW.stop):
        for column in residuals.indices[row]:
            frame = slice(row, row + 1)
            left = SCORES + column * CELL
            draw_outline(ax, left, CELL, frame, edgecolor=ORANGE, linewidth=2.8, zorder=3)
    draw_outline(ax, SCORES, N * CELL, NOW, edgecolor=INK, linewidth=2, zorder=4)

    # What is kept and the output: filled in as far as the chunk at work.
    done = slice(0, NOW.stop)
    kept = BLUES(blue(residuals.scores[done]))
    draw_cells(ax, KEPT, 0, kept, KEPT_CELL)
    draw_cells(ax, OUT, 0, GREENS(green(out[done])))
    for row in range(NOW.stop):
        for slot, index in enumerate(residuals.indices[row]):
            x = INDICES + (slot + 0.5) * INDEX_CELL
            y = TOP - (row + 0.52) * CELL
            ax.text(x, y, str(index), size=SMALL, ha="center", va="center")
    for left, width in ((KEPT, K * KEPT_CELL), (INDICES, K * INDEX_CELL), (OUT, V * CELL)):
        edge = GREY if left == OUT else RUST
        draw_outline(ax, left, width, everything, edgecolor=edge, linewidth=1.6)
        draw_outline(ax, left, width, NOW, edgecolor=INK, linewidth=2, zorder=4)

    middle = TOP - (NOW.start + C / 2) * CELL
    for start, stop in ((SCORES + N * CELL, KEPT), (INDICES + K * INDEX_CELL, OUT)):
        ax.annotate(
            "",
            (stop - 0.04, middle),
            (start + 0.04, middle),
            arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.8, "shrinkA": 0, "shrinkB": 0},
        )


def write_words(ax: Axes) -> None:
    """Say what is seen."""
    above = TOP + 0.12
    ax.text(SCORES, above, "scores", size=TEXT, weight="bold")
    ax.text(SCORES + N * CELL, above, "the k largest of each row", size=TEXT, ha="right")
    swatch = (SCORES + N * CELL - 2.74, above - 0.02)
    ax.add_patch(Rectangle(swatch, CELL, CELL, fill=False, edgecolor=ORANGE, linewidth=2.8))
    ax.text(KEPT, above + 0.3, "kept for each query", size=TEXT, weight="bold", color=RUST)
    ax.text(KEPT, above, "k scores", size=SMALL)
    ax.text(INDICES, above, "k indices", size=SMALL)
    ax.text(OUT, above, "out", size=TEXT, weight="bold")

    x = SCORES + N * CELL / 2
    style: dict[str, Any] = {"ha": "center", "va": "center", "size": TEXT}
    ax.text(x, TOP - NOW.start / 2 * CELL, "earlier scores: gone", color=GREY, **style)
    y = TOP - NOW.stop * CELL
    ax.text(x, y - 0.3, "one chunk: the largest thing ever held", weight="bold", **style)
    ax.text(x, y - 1.05, "later scores: not made yet", color=GREY, **style)
    ax.text(SCORES - 0.2, TOP - Q * CELL / 2, "Q queries", rotation=90, **style)
    ax.text(x, TOP - Q * CELL - 0.2, "N keys", **style)


def draw_memory(ax: Axes) -> None:
    """Draw what must be held against length, from formulas."""
    dense = 4.0 * LENGTHS * LENGTHS
    topk = 8.0 * CURVE_K * LENGTHS + 4.0 * CURVE_C * LENGTHS
    ax.loglog(LENGTHS, dense, color=INK, linewidth=2.5, linestyle=(0, (4, 1.5)))
    ax.loglog(LENGTHS, topk, color=RUST, linewidth=3)
    ax.set_xticks(LENGTHS[::2], [f"{length:,}" for length in LENGTHS[::2]])
    ax.set_yticks([2.0**20, 2.0**25, 2.0**30], ["1 MiB", "32 MiB", "1 GiB"])
    ax.minorticks_off()
    ax.tick_params(labelsize=SMALL, color=GREY)
    ax.set_xlabel("length Q = N (computed from formulas, not measured)", size=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.grid(color="#d8dee4", linewidth=0.8)
    ax.set_facecolor("none")
    near: dict[str, Any] = {"va": "center", "size": SMALL}
    x = 1.13 * LENGTHS[-1]
    ax.text(x, dense[-1], f"all scores at once\n{dense[-1] / 2**30:.0f} GiB", **near)
    near |= {"color": RUST, "weight": "bold"}
    ax.text(x, topk[-1], f"top-k, in chunks\n{topk[-1] / 2**20:.0f} MiB", **near)


def main() -> None:
    """Write the picture beside this script, on a card that suits light and dark pages."""
    mpl.rcParams.update({"svg.hashsalt": "topk", "text.color": INK, "axes.labelcolor": INK})
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="none")
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    ax.set_axis_off()
    card = FancyBboxPatch(
        (0.12, 0.12),
        WIDTH - 0.24,
        HEIGHT - 0.24,
        boxstyle="round,pad=0.1,rounding_size=0.2",
        facecolor="white",
        edgecolor="#d0d7de",
        linewidth=1,
        zorder=-1,
    )
    ax.add_patch(card)
    draw_idea(ax)
    write_words(ax)
    words = f"beyond inputs and output,\none head, float32,\nk = {CURVE_K}, chunks of {CURVE_C}"
    ax.text(0.4, 2.4, "what must be held", size=TEXT, weight="bold", va="top")
    ax.text(0.4, 2.06, words, size=SMALL, va="top", linespacing=1.4)
    place = (3.75 / WIDTH, 0.85 / HEIGHT, 3.6 / WIDTH, 1.8 / HEIGHT)
    draw_memory(figure.add_axes(place))
    here = Path(__file__)
    figure.savefig(here.with_suffix(".png"), dpi=160, metadata={"Software": None})
    figure.savefig(here.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
