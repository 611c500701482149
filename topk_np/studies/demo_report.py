"""The words and the picture of the demo: the table, the pass key, and what was shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topk_np._plots import COLOURS, STYLE
from topk_np._process import MEBI
from topk_np.models.llama import Llama
from topk_np.models.sublayers import CHUNK
from topk_np.studies.runner import Result, Setting

PASS_KEY = "71853"
PASS_KEY_K = 64  # always among the k that are tried
FFN_SHARE = 3  # the feed-forward setting keeps one unit in three
TOPK, DENSE = COLOURS[:2]
NOTES = """\
Softmax mass: the part of the dense attention weights that falls on the kept keys, mean over
queries, heads and layers. Scratch: measured, beyond inputs and output, for one layer; dense is
the textbook form, all scores of a head at once (as it is run here, in chunks of {chunk} queries:
{chunked} MiB). Time: one pass over the text, model and loss."""

Row = tuple[Setting, Result]
"""A line of the table; the first is that of the dense model."""


def heading(name: str, model: Llama, tokens: int, source: str, /) -> str:
    """Model and text."""
    config, layers = model.config, model.params["layers"]
    units = layers["0"]["ffn"]["gate"].shape[0]
    return (
        f"{name} reads {tokens:,} tokens of {source}\n"
        f"({len(layers)} layers, {config.heads} heads on {config.groups}, "
        f"{units:,} feed-forward units; float32, NumPy)\n"
    )


def label(setting: Setting, /) -> str:
    """A setting in words."""
    if "ffn_k" in setting:
        return f"feed-forward k = {setting['ffn_k']:,}"
    return f"attention k = {setting['attention_k']:,}" if setting else "dense"


def table(rows: Sequence[Row], /) -> str:
    """The table, and how to read it."""
    head = [
        f"{'':22}{'keys':>8}{'softmax':>11}{'':12}{'next-token':>12}{'attention':>14}",
        f"{'':22}{'kept':>8}{'mass kept':>11}{'perplexity':>12}{'accuracy':>12}"
        f"{'peak scratch':>14}{'time':>9}",
    ]
    lines = [
        f"{label(setting):22}{row['keys_kept']:8.1%}{row['mass_kept']:11.1%}"
        f"{row['perplexity']:12.2f}{row['accuracy']:12.1%}{_mib(row['scratch']):>10} MiB"
        f"{row['seconds']:7.1f} s"
        for setting, row in rows
    ]
    rule = "-" * len(head[1])
    notes = NOTES.format(chunked=_mib(rows[0][1]["chunk_scratch"]), chunk=CHUNK)
    return "\n".join([*head, rule, *lines, rule, notes]) + "\n"


def pass_key(rows: Sequence[Row], /) -> str:
    """The answer of each setting to the question for the hidden pass key."""
    lines = [
        f"A pass key, {PASS_KEY}, is hidden in the middle of the text and asked for at its end.",
        "Read off the same pass: the most probable token at each digit of the key.",
    ]
    for setting, row in rows:
        verdict = "right" if _found(row) else "wrong"
        lines.append(f"{label(setting):22}{row['answer']!r:>10}  {verdict}")
    return "\n".join(lines) + "\n"


def findings(rows: Sequence[Row], /) -> str:
    """Three lines on what was shown."""
    (_, dense), (of_ffn, ffn) = rows[0], rows[-1]
    row = next(row for setting, row in rows if setting.get("attention_k") == PASS_KEY_K)
    finds, finds_too = ("finds" if _found(one) else "misses" for one in (dense, row))
    return (
        f"1. k = {PASS_KEY_K} keeps {row['keys_kept']:.0%} of the keys and "
        f"{row['mass_kept']:.0%} of the softmax mass: perplexity {_change(dense, row)}, not "
        f"retrained.\n2. Attention's scratch goes from {_mib(dense['scratch'])} to "
        f"{_mib(row['scratch'])} MiB; dense {finds} the pass key, k = {PASS_KEY_K} {finds_too} "
        f"it.\n3. Feed-forward layers need a larger share: with 1 unit in {FFN_SHARE} "
        f"({of_ffn['ffn_k']:,}) perplexity {_change(dense, ffn)}."
    )


def _found(row: Result) -> bool:
    return bool(row["answer"] == PASS_KEY)


def _mib(size: int) -> str:
    return f"{size / MEBI:.1f}"


def _change(dense: Result, row: Result) -> str:
    change = row["perplexity"] / dense["perplexity"] - 1
    return f"{dense['perplexity']:.2f} -> {row['perplexity']:.2f} ({change:+.1%})"


def save_plot(path: Path, rows: Sequence[Row], name: str, text: str, /) -> None:
    """Draw perplexity and scratch against the k of attention, with dense as a dashed line."""
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
        for axes, title, key, unit in (
            (quality, f"Perplexity on {text}", "perplexity", 1),
            (memory, "Peak scratch of attention, MiB a layer", "scratch", MEBI),
        ):
            heights = {s["attention_k"]: r[key] / unit for s, r in rows if "attention_k" in s}
            _panel(axes, title, dict(sorted(heights.items())), rows[0][1][key] / unit)
        memory.set_ylim(bottom=0)
        figure.savefig(path, dpi=160)


def _panel(axes: Any, title: str, by_k: dict[int, float], dense: float) -> None:
    """Draw heights by k, ascending, and the dense model's."""
    ks, heights = list(by_k), list(by_k.values())
    axes.set_title(title)
    axes.axhline(dense, color=DENSE, linestyle="--", linewidth=1.6)
    axes.plot(ks, heights, color=TOPK, marker="o", markersize=6, linewidth=2.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.14)
    axes.set_xlabel("k, keys kept for each query")
    falling = heights[0] > heights[-1]
    for k, height in by_k.items():
        # On the outer side of the curve, where it does not run through the number.
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
