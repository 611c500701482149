"""Perplexity of SmolLM2 with top-k attention, with top-k feed-forward layers, and with both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from topk_np._namespace import Array
from topk_np._plots import COLOURS, columns, curves, dense_line, ratios
from topk_np._process import MEBI, describe_ks, markdown, run_alone
from topk_np.models.llama import Llama, LlamaConfig
from topk_np.models.load import load_named
from topk_np.studies.reading import SOURCES, digest, mass_of_layer, read, sequences, with_setting
from topk_np.studies.runner import Point, Prepared, Result, Setting, Tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STARTS = (0, 40_000)  # tokens into a source
SHORT, LONGER, LONG = 1024, 2048, 8192
"""Lengths; the longest is read in a process of its own, whose peak of memory is measured."""
SEQUENCES = {SHORT: 4, LONGER: 2, LONG: 1}
"""The number of sequences of each length."""
ATTENTION_KS = (256, 128, 64, 32, 16, 8)
FFN_KS = (1024, 768, 512, 384, 256, 128)


def prepare(model: str | None, /) -> Prepared:
    """Load the model and what it reads."""
    model = model or "smollm2"
    loaded: Llama = load_named(model, LlamaConfig)
    texts = sequences(loaded.tokenizer, STARTS, LONG)
    layers, context = len(loaded.params["layers"]), loaded.config.context
    return Prepared(
        about={
            "model": model,
            "texts": [f"{name} from token {start:,}" for start in STARTS for name in SOURCES],
            "tokens": digest(texts),
        },
        settings=[setting for setting in settings() if setting["tokens"] <= context],
        measure=partial(measure, model, loaded, texts),
        steps=lambda setting: layers * SEQUENCES[setting["tokens"]],
    )


def settings() -> Iterator[Setting]:
    """The settings to measure with, the short texts first."""
    short: Setting = {"tokens": SHORT}
    yield short
    yield from (short | {"attention_k": k} for k in ATTENTION_KS)
    yield from (short | {"attention_k": k, "dense_layers": [0]} for k in (64, 32))
    yield from (short | {"ffn_k": k} for k in FFN_KS)
    yield short | {"ffn_k": 512, "ffn_select": "score"}
    yield from (short | {"attention_k": 64, "ffn_k": k} for k in (1024, 768, 512))
    longer: Setting = {"tokens": LONGER}
    yield longer
    yield from (longer | {"attention_k": k} for k in (128, 64, 32))
    long: Setting = {"tokens": LONG}
    yield long
    yield from (long | {"attention_k": k} for k in (128, 64))


def measure(
    model: str, loaded: Llama, texts: Sequence[np.ndarray], setting: Setting, tick: Tick, /
) -> Result:
    """Read all texts of a length."""
    tokens = setting["tokens"]
    chosen = [text[:tokens] for text in texts[: SEQUENCES[tokens]]]
    if tokens < LONG:
        ks = ATTENTION_KS if setting == {"tokens": SHORT} else ()
        return read_all(with_setting(loaded, setting), chosen, tick, ks)
    result, peak = run_alone(_read_long, model, chosen, setting)
    for _ in range(len(loaded.params["layers"]) * len(chosen)):
        tick()
    return result | {"peak_memory": peak}


def read_all(
    model: Llama, texts: Sequence[np.ndarray], tick: Tick, mass_ks: Sequence[int] = (), /
) -> Result:
    """Read texts of one length, and measure the mass that some k would keep in each layer."""
    losses, hits, masses = [], [], []

    def watch(query: Array, key: Array, value: Array) -> None:
        tick()
        if mass_ks:
            masses.append(mass_of_layer(query, key, mass_ks))

    for text in texts:
        seen = read(model, text, watch)
        losses.append(float(np.mean(seen.loss)))
        hits.append(float(np.mean(seen.best == text[1:])))
    result: Result = {
        "perplexity": round(math.exp(mean(losses)), 3),
        "accuracy": round(mean(hits), 4),
        "losses": [round(loss, 4) for loss in losses],
    }
    if mass_ks:
        layers = np.reshape(np.asarray(masses, float), (len(texts), -1, len(mass_ks)))
        result["kept_mass"] = {
            str(k): np.round(np.mean(layers[..., i], axis=0), 4).tolist()
            for i, k in enumerate(mass_ks)
        }
    return result


def _read_long(model: str, texts: Sequence[np.ndarray], setting: Setting) -> Result:
    """In a process of its own: load the model and read."""
    loaded: Llama = load_named(model, LlamaConfig)
    return read_all(with_setting(loaded, setting), texts, lambda: None)


def label(setting: Setting, /) -> str:
    """A setting in words."""
    return f"{setting['tokens']:,} tokens, {describe_ks(setting)}"


def table(points: Sequence[Point], /) -> str:
    """A table for each length, and one of the mass that is kept."""
    tables = []
    for tokens in dict.fromkeys(point.setting["tokens"] for point in points):
        tables.append(_table(tokens, [p for p in points if p.setting["tokens"] == tokens]))
    for point in points:
        if "kept_mass" in point.result:
            tables.append(_mass_table(point.result["kept_mass"]))
    return "\n\n".join(tables)


def _table(tokens: int, points: Sequence[Point]) -> str:
    dense = _dense(points)
    first = points[0]
    count = len(first.result["losses"])
    sources = list(SOURCES)[:count] if count > 1 else []
    head = [f"{tokens:,} tokens", "perplexity", "against dense", *sources, "next-token accuracy"]
    alone = "peak_memory" in first.result
    head += ["peak memory, MiB"] if alone else []
    rows = []
    for point in points:
        found = point.result
        losses = found["losses"]
        rows.append(
            [
                describe_ks(point.setting),
                f"{found['perplexity']:,.2f}",
                f"{found['perplexity'] / dense - 1:+,.1%}"
                if dense and dense != found["perplexity"]
                else "",
                *(f"{math.exp(mean(losses[i :: len(sources)])):,.2f}" for i in range(len(sources))),
                f"{found['accuracy']:.3f}",
                *([f"{found['peak_memory'] / MEBI:,.0f}"] if alone else []),
            ]
        )
    return markdown(head, rows)


def _mass_table(mass: dict[str, list[float]]) -> str:
    head = ["softmax mass kept", "mean of layers", "layer 0", "least of the others"]
    rows = [
        [f"k = {int(k):,}", *(f"{x:.3f}" for x in (mean(of), of[0], min(of[1:], default=of[0])))]
        for k, of in mass.items()
    ]
    return markdown(head, rows)


def draw(points: Sequence[Point], /) -> dict[str, Figure]:
    """Perplexity against k, and the mass that is kept in each layer."""
    figures = {}
    if len([p for p in points if p.setting["tokens"] == SHORT]) > 1 and _dense(points):
        figures["perplexity"] = _draw_perplexity(points)
    for point in points:
        if "kept_mass" in point.result:
            figures["kept_mass"] = _draw_mass(point.result["kept_mass"])
    return figures


def _draw_perplexity(points: Sequence[Point]) -> Figure:
    figure, (left, right) = columns(2)
    attention = {
        f"{tokens:,} tokens": _ratios(points, tokens, "attention_k")
        for tokens in SEQUENCES
        if tokens in {point.setting["tokens"] for point in points}
    }
    attention["1,024 tokens, layer 0 dense"] = _ratios(points, SHORT, "attention_k", "dense_layers")
    curves(left, attention)
    curves(
        right,
        {
            "attention dense": _ratios(points, SHORT, "ffn_k"),
            "attention k = 64": _ratios(points, SHORT, "ffn_k", "attention_k"),
        },
    )
    for axes, title, ticks in (
        (left, "Attention", (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2)),
        (right, f"Feed-forward, {SHORT:,} tokens", (1, 1.2, 1.5, 2, 3, 5, 8)),
    ):
        ratios(axes, ticks)
        dense_line(axes, 1, above=False)
        axes.set_title(f"{title}: perplexity / dense")
    return figure


def _draw_mass(mass: dict[str, list[float]]) -> Figure:
    figure, (axes,) = columns(1)
    for (k, of_layers), colour in zip(mass.items(), COLOURS, strict=False):
        axes.plot(of_layers, color=colour, marker="o", markersize=4, label=f"k = {k}")
    axes.set_ylim(0, 1)
    axes.set_xlabel("layer")
    axes.set_title(f"Softmax mass that k of {SHORT:,} keys hold")
    axes.legend(ncols=2)
    return figure


def _ratios(points: Sequence[Point], tokens: int, part: str, *others: str) -> dict[int, float]:
    """Perplexity against dense by k, of the settings with these parts alone."""
    own = [point for point in points if point.setting["tokens"] == tokens]
    dense, parts = _dense(own), {"tokens", part, *others}
    return {
        point.setting[part]: point.result["perplexity"] / dense
        for point in own
        if dense and point.setting.keys() == parts
    }


def _dense(points: Sequence[Point]) -> float | None:
    """The perplexity of the dense model on the texts of the first point."""
    dense = {"tokens": points[0].setting["tokens"]}
    return next((p.result["perplexity"] for p in points if p.setting == dense), None)
