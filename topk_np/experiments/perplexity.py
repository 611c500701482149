"""How well SmolLM2 reads with top-k attention, with top-k feed-forward layers, and with both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from topk_np._namespace import Array
from topk_np.experiments.alone import run_alone
from topk_np.experiments.names import Point, Prepared, Result, Setting, Tick
from topk_np.experiments.reading import mass_of_layer, read
from topk_np.experiments.settings import describe, with_setting
from topk_np.experiments.tables import markdown
from topk_np.experiments.texts import SOURCES, digest, sequences
from topk_np.models.llama import Llama, LlamaConfig
from topk_np.models.named import load_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STARTS = (0, 40_000)  # tokens into a source
SHORT, LONGER, LONG = 1024, 2048, 8192
SEQUENCES = {SHORT: 4, LONGER: 2, LONG: 1}
"""How many are read of each length."""
ATTENTION_KS = (256, 128, 64, 32, 16, 8)
FFN_KS = (1024, 768, 512, 384, 256, 128)
"""Settings of a `LONG` text run in a process of their own, whose peak of memory is theirs."""


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
    """What is measured, the short texts first."""
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
        of_layers = np.mean(np.reshape(masses, (len(texts), -1, len(mass_ks))), axis=0)
        result["kept_mass"] = {
            str(k): np.round(of_layers[:, i], 4).tolist() for i, k in enumerate(mass_ks)
        }
    return result


def _read_long(model: str, texts: Sequence[np.ndarray], setting: Setting) -> Result:
    """In a process of its own: load the model and read."""
    loaded: Llama = load_named(model, LlamaConfig)
    return read_all(with_setting(loaded, setting), texts, lambda: None)


def label(setting: Setting, /) -> str:
    """A setting in words."""
    return f"{setting['tokens']:,} tokens, {describe(setting)}"


def table(points: Sequence[Point], /) -> str:
    """A table for each length."""
    tables = []
    for tokens in dict.fromkeys(point.setting["tokens"] for point in points):
        rows = [point for point in points if point.setting["tokens"] == tokens]
        tables.append(_table(tokens, rows))
    return "\n\n".join(tables)


def _table(tokens: int, points: Sequence[Point]) -> str:
    dense = next((p.result["perplexity"] for p in points if p.setting == {"tokens": tokens}), None)
    head = [f"{tokens:,} tokens", "perplexity", "against dense", "next-token accuracy"]
    rows = []
    for point in points:
        found = point.result
        change = "" if dense is None else f"{found['perplexity'] / dense - 1:+.1%}"
        rows.append(
            [
                describe(point.setting),
                f"{found['perplexity']:.2f}",
                change,
                f"{found['accuracy']:.3f}",
            ]
        )
    return markdown(head, rows)


def draw(points: Sequence[Point], /) -> dict[str, Figure]:
    """Nothing yet."""
    return {}
