"""
The program ``python -m topk_np demo``: a language model reads a text, dense and with top-k.

It is a preset of the runner of studies, with a pass key hidden in the text, and keeps no file of
points.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np

from topk_np import dense_attention
from topk_np._namespace import Array
from topk_np._process import UserError
from topk_np.fetch import fetch
from topk_np.models.gguf import read_gguf
from topk_np.models.llama import Llama, causal_attention
from topk_np.models.scoring import NextTokens
from topk_np.models.tokenizers import Tokenizer
from topk_np.studies.demo_report import (
    FFN_SHARE,
    PASS_KEY,
    PASS_KEY_K,
    findings,
    heading,
    label,
    pass_key,
    save_plot,
    table,
)
from topk_np.studies.reading import (
    Prompt,
    Watch,
    documentation,
    hide,
    mass_of_layer,
    read,
    with_setting,
)
from topk_np.studies.runner import Prepared, Result, Setting, Tick, measure

MOST_CHARACTERS = 64  # read at most for each token that is wanted
Heads = tuple[Array, Array, Array]
"""Query, key and value of one attention layer."""


def run(
    *, ks: Sequence[int], tokens: int, text: Path | None, weights: Path | None, plot: Path
) -> None:
    """
    Measure, print the table and what it shows, and save the plot.

    Parameters
    ----------
    ks : sequence of int
        Keys kept for each query, one run each.
    tokens : int
        The length of the text.
    text : Path, optional
        A text file, by default Python's own documentation.
    weights : Path, optional
        A GGUF file, by default SmolLM2-135M, which is downloaded once.
    plot : Path
        Where the plot goes.

    Raises
    ------
    UserError
        With a message of one line.
    """
    import tqdm  # noqa: F401  not only when all is loaded

    check_plot(plot)
    source, words = read_text(text, tokens)
    name, model = load_model(weights)
    prompt = make_prompt(model.tokenizer, encode(model, words, tokens, source))
    prepared = prepare(model, prompt, ks)
    found = measure(prepared, "demo", label, unit="layer")
    rows = [(setting, result) for setting, result, _ in found]
    print(heading(name, model, tokens, source))
    print(table(rows))
    print(pass_key(rows))
    print(findings(rows))
    try:
        save_plot(plot, rows, name, f"{tokens:,} tokens of {source}")
    except OSError as error:
        raise UserError(f"--plot {plot}: {error.strerror}") from error
    print(f"\nPlot: {plot}")


def check_plot(path: Path) -> None:
    """Check that a plot can be saved at `path`."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise UserError(f"--plot must end in one of .{', .'.join(sorted(kinds))}, got {path}")
    if not path.parent.is_dir():
        raise UserError(f"--plot {path}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--plot {path} cannot be written")


def read_text(path: Path | None, tokens: int) -> tuple[str, str]:
    """Return the name of the text, and enough of it for a number of tokens."""
    if path is None:
        return "Python's documentation", documentation()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(tokens * MOST_CHARACTERS)
    except OSError as error:
        raise UserError(f"--text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--text {path} is not UTF-8 text") from error
    if "\0" in text:
        raise UserError(f"--text {path} is not text: it has zero bytes")
    if not text.strip():
        raise UserError(f"--text {path} is empty")
    return path.name, text


def load_model(path: Path | None) -> tuple[str, Llama]:
    """Read the GGUF file at `path`, or fetch SmolLM2; return the model's name and the model."""
    if path is None:
        return "SmolLM2-135M-Instruct", read_gguf(fetch("smollm2"))
    try:
        return path.stem, read_gguf(path)
    except OSError as error:
        raise UserError(f"--weights {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--weights: {error}") from error


def encode(model: Llama, text: str, tokens: int, source: str) -> np.ndarray:
    """The first `tokens` token ids of the text."""
    context = model.config.context
    if tokens > context:
        raise UserError(f"--tokens must be at most {context}, the model's limit, got {tokens}")
    try:
        ids = model.tokenizer.encode(text)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    if len(ids) < tokens:
        raise UserError(
            f"{source} is too short: it has {len(ids)} tokens, fewer than --tokens {tokens}"
        )
    return ids[:tokens]


def make_prompt(tokenizer: Tokenizer, text: np.ndarray, /) -> Prompt:
    """
    Hide the pass key in the middle of a text of (Q,) tokens.

    Raises
    ------
    UserError
        If there would be next to no text around it.
    """
    try:
        return hide(tokenizer, text, PASS_KEY)
    except ValueError as error:
        raise UserError(f"--tokens {error}") from error


def prepare(model: Llama, prompt: Prompt, ks: Sequence[int], /) -> Prepared:
    """The settings: dense, each k in attention, largest first, and top-k feed-forward layers."""
    layers = model.params["layers"]
    units, ks = layers["0"]["ffn"]["gate"].shape[0], sorted({*ks, PASS_KEY_K}, reverse=True)
    return Prepared(
        about={},
        settings=[
            {},
            *({"attention_k": k} for k in ks),
            {"ffn_k": max(1, units // FFN_SHARE)},
        ],
        measure=_Reader(model, prompt, ks).measure,
        steps=lambda setting: len(layers),
    )


@dataclass
class _Reader:
    """A model that reads a prompt; on the first, dense pass it observes the heads of each layer."""

    model: Llama
    prompt: Prompt
    ks: Sequence[int]
    masses: list[Array] = field(default_factory=list)
    heads: list[Array] = field(default_factory=list)

    def measure(self, setting: Setting, tick: Tick, /) -> Result:
        """Read once, and measure the attention of the last layer."""
        prompt, k = self.prompt, setting.get("attention_k")
        model, observe = with_setting(self.model, setting), self.observe if not setting else None
        seen, seconds = timed_read(model, prompt.ids, tick, observe)
        hits = seen.best == prompt.ids[1:]
        mass_kept = dict(zip(self.ks, np.mean(self.masses, axis=0), strict=True))
        query, key, value = self.heads
        return {
            "keys_kept": _keys_kept(len(prompt.ids), k),
            "mass_kept": 1.0 if k is None else float(mass_kept[k]),
            "perplexity": float(np.exp(np.mean(seen.loss[prompt.is_text]))),
            "accuracy": float(np.mean(hits[prompt.is_text])),
            # Bytes beyond inputs and output, and the same in the chunks that the model runs with.
            "scratch": attention_scratch((query, key, value), k, in_chunks=k is not None),
            "chunk_scratch": attention_scratch((query, key, value), k),
            "seconds": seconds,
            "answer": self.model.tokenizer.decode(seen.best[-prompt.digits :]),
        }

    def observe(self, query: Array, key: Array, value: Array) -> None:
        """Note the softmax mass that each k would keep in a layer, and keep the layer's heads."""
        self.masses.append(mass_of_layer(query, key, self.ks))
        self.heads[:] = (query, key, value)


def timed_read(
    model: Llama, tokens: np.ndarray, tick: Tick, observe: Watch | None, /
) -> tuple[NextTokens, float]:
    """Read (Q,) tokens; return the predictions, and the seconds without those of `observe`."""
    observing = 0.0

    def watch(query: Array, key: Array, value: Array) -> None:
        nonlocal observing
        tick()
        if observe is not None:
            start = perf_counter()
            observe(query, key, value)
            observing += perf_counter() - start

    start = perf_counter()
    seen = read(model, tokens, watch)
    return seen, perf_counter() - start - observing


def attention_scratch(heads: Heads, k: int | None, /, *, in_chunks: bool = True) -> int:
    """
    Peak bytes that causal attention, dense if `k` is None, holds beyond its inputs and its output.

    In chunks as the model runs it, or dense as in the textbook: all scores of a head at once.
    """
    # What is imported on first use is no scratch, so a call on two positions goes before.
    causal_attention(*(array[..., :2, :] for array in heads), k=None if k is None else 1)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        if in_chunks:
            out = causal_attention(*heads, k=k)
        else:
            out = dense_attention(*heads, is_causal=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return int(peak - before - out.nbytes)


def _keys_kept(tokens: int, k: int | None) -> float:
    """The share of all (query, key) pairs that causal attention allows."""
    allowed = np.arange(1, tokens + 1)
    return float(np.sum(allowed if k is None else np.minimum(allowed, k)) / np.sum(allowed))
