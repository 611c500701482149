"""The demo's words: the table, the pass key, and three lines on what was shown."""

from __future__ import annotations

from collections.abc import Sequence

from topk_np.models.llama_blocks import Llama
from topk_np.models.sublayers import CHUNK
from topk_np.studies.demo.experiment import FFN_SHARE, PASS_KEY, PASS_KEY_K, Row

MEBI = 2**20
NOTES = """\
Softmax mass: the part of the dense attention weights that falls on the kept keys, mean over
queries, heads and layers. Scratch: measured, beyond inputs and output, for one layer; dense is
the textbook form, all scores of a head at once (as it is run here, in chunks of {chunk} queries:
{chunked} MiB). Time: one pass over the text, model and loss."""


def heading(name: str, model: Llama, tokens: int, source: str, /) -> str:
    """What was run on what."""
    config, layers = model.config, model.params["layers"]
    units = layers["0"]["ffn"]["gate"].shape[0]
    return (
        f"{name} reads {tokens:,} tokens of {source}\n"
        f"({len(layers)} layers, {config.heads} heads on {config.groups}, "
        f"{units:,} feed-forward units; float32, NumPy)\n"
    )


def table(rows: Sequence[Row], /) -> str:
    """The table and how to read it; the first row is the dense model."""
    head = [
        f"{'':22}{'keys':>8}{'softmax':>11}{'':12}{'next-token':>12}{'attention':>14}",
        f"{'':22}{'kept':>8}{'mass kept':>11}{'perplexity':>12}{'accuracy':>12}"
        f"{'peak scratch':>14}{'time':>9}",
    ]
    lines = [
        f"{label(row):22}{row.keys_kept:8.1%}{row.mass_kept:11.1%}{row.perplexity:12.2f}"
        f"{row.accuracy:12.1%}{_mib(row.scratch):>10} MiB{row.seconds:7.1f} s"
        for row in rows
    ]
    rule = "-" * len(head[1])
    notes = NOTES.format(chunked=_mib(rows[0].chunk_scratch), chunk=CHUNK)
    return "\n".join([*head, rule, *lines, rule, notes]) + "\n"


def label(row: Row, /) -> str:
    """How the table calls a row."""
    if row.ffn_k is not None:
        return f"feed-forward k = {row.ffn_k:,}"
    return "dense" if row.attention_k is None else f"attention k = {row.attention_k:,}"


def pass_key(rows: Sequence[Row], /) -> str:
    """What each way of running the model took the hidden pass key for."""
    lines = [
        f"A pass key, {PASS_KEY}, is hidden in the middle of the text and asked for at its end.",
        "Read off the same pass: the most probable token at each digit of the key.",
    ]
    for row in rows:
        verdict = "right" if _found(row) else "wrong"
        lines.append(f"{label(row):22}{row.answer!r:>10}  {verdict}")
    return "\n".join(lines) + "\n"


def findings(rows: Sequence[Row], /) -> str:
    """Three lines on what was shown."""
    dense, ffn = rows[0], rows[-1]
    row = next(row for row in rows if row.attention_k == PASS_KEY_K)
    finds, finds_too = ("finds" if _found(one) else "misses" for one in (dense, row))
    return (
        f"1. k = {PASS_KEY_K} keeps {row.keys_kept:.0%} of the keys and {row.mass_kept:.0%} of "
        f"the softmax mass: perplexity {_change(dense, row)}, not retrained.\n"
        f"2. Attention's scratch goes from {_mib(dense.scratch)} to {_mib(row.scratch)} MiB; "
        f"dense {finds} the pass key, k = {PASS_KEY_K} {finds_too} it.\n"
        f"3. Feed-forward layers need a larger share: with 1 unit in {FFN_SHARE} "
        f"({ffn.ffn_k:,}) perplexity {_change(dense, ffn)}."
    )


def _found(row: Row) -> bool:
    return row.answer == PASS_KEY


def _mib(size: int) -> str:
    return f"{size / MEBI:.1f}"


def _change(dense: Row, row: Row) -> str:
    change = row.perplexity / dense.perplexity - 1
    return f"{dense.perplexity:.2f} -> {row.perplexity:.2f} ({change:+.1%})"
