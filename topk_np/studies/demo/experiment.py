"""What the demo measures: quality, kept softmax mass, memory and time, and a hidden pass key."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from topk_np import dense_attention
from topk_np._namespace import Array
from topk_np._process import UserError
from topk_np.models.llama import causal_attention
from topk_np.models.llama_blocks import Llama
from topk_np.models.scoring import NextTokens
from topk_np.models.tokenizer import Tokenizer
from topk_np.studies.prompts import Prompt, hide
from topk_np.studies.reading import Watch, mass_of_layer, read

PASS_KEY = "71853"
PASS_KEY_K = 64  # always among the k that are tried
FFN_SHARE = 3  # the feed-forward setting keeps one unit in so many

Tick = Callable[[], object]  # called once a layer
Heads = tuple[Array, Array, Array]  # query, key, value of one attention layer


@dataclass(frozen=True)
class Row:
    """One line of the table. `attention_k` and `ffn_k` are None where that part is dense."""

    attention_k: int | None
    ffn_k: int | None
    keys_kept: float  # share of all (query, key) pairs that causal attention allows
    mass_kept: float  # share of the dense softmax mass
    perplexity: float
    accuracy: float
    scratch: int  # bytes of attention beyond its inputs and its output, at the peak
    chunk_scratch: int  # the same in the chunks that the model runs with; differs where dense
    seconds: float
    answer: str  # what the pass key was taken for


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


def chosen_ks(ks: Sequence[int], /) -> list[int]:
    """The k to try, largest first."""
    return sorted({*ks, PASS_KEY_K}, reverse=True)


def compare(model: Llama, prompt: Prompt, ks: list[int], tick: Tick, /) -> list[Row]:
    """
    Run the model dense, with each k in attention, and with top-k feed-forward layers.

    `tick` is called (len(ks) + 2) times the number of layers.
    """
    masses: list[Array] = []
    heads: list[Heads] = []

    def observe(query: Array, key: Array, value: Array) -> None:
        masses.append(mass_of_layer(query, key, ks))
        heads[:] = [(query, key, value)]

    units = model.params["layers"]["0"]["ffn"]["gate"].shape[0]
    settings: list[tuple[int | None, int | None]] = [
        (None, None),
        *((k, None) for k in ks),
        (None, max(1, units // FFN_SHARE)),
    ]
    measured: list[tuple[NextTokens, float]] = []
    for attention_k, ffn_k in settings:
        watch = None if measured else observe
        measured.append(_timed_run(model, prompt, attention_k, ffn_k, tick, watch))

    mass_kept = dict(zip(ks, np.mean(masses, axis=0), strict=True))
    rows = []
    for (attention_k, ffn_k), (seen, seconds) in zip(settings, measured, strict=True):
        hits = seen.best == prompt.ids[1:]
        rows.append(
            Row(
                attention_k=attention_k,
                ffn_k=ffn_k,
                keys_kept=_keys_kept(len(prompt.ids), attention_k),
                mass_kept=1.0 if attention_k is None else float(mass_kept[attention_k]),
                perplexity=float(np.exp(np.mean(seen.loss[prompt.is_text]))),
                accuracy=float(np.mean(hits[prompt.is_text])),
                scratch=attention_scratch(heads[0], attention_k, in_chunks=attention_k is not None),
                chunk_scratch=attention_scratch(heads[0], attention_k),
                seconds=seconds,
                answer=model.tokenizer.decode(seen.best[-prompt.digits :]),
            )
        )
    return rows


def attention_scratch(heads: Heads, k: int | None, /, *, in_chunks: bool = True) -> int:
    """
    Peak bytes that causal attention, dense if `k` is None, holds beyond its inputs and its output.

    In chunks as the model runs it, or dense as in the textbook: all scores of a head at once.
    """
    # what is imported on first use is no scratch, so a call on two positions goes before
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


def _timed_run(
    model: Llama,
    prompt: Prompt,
    attention_k: int | None,
    ffn_k: int | None,
    tick: Tick,
    observe: Watch | None,
) -> tuple[NextTokens, float]:
    """One pass over the prompt, and its seconds without those of `observe`."""
    observing = 0.0

    def watch(query: Array, key: Array, value: Array) -> None:
        nonlocal observing
        tick()
        if observe is not None:
            start = perf_counter()
            observe(query, key, value)
            observing += perf_counter() - start

    start = perf_counter()
    seen = read(replace(model, attention_k=attention_k, ffn_k=ffn_k), prompt.ids, watch)
    return seen, perf_counter() - start - observing


def _keys_kept(tokens: int, k: int | None) -> float:
    allowed = np.arange(1, tokens + 1)
    return float(np.sum(allowed if k is None else np.minimum(allowed, k)) / np.sum(allowed))
