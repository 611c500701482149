"""
A pretrained language model: its distance from transformers, its speed, and its memory.

Reading is compared in CPU time, on one thread each: other programs prolong that little, and threads
that wait busily do not count as work.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pydoc_data.topics import topics
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np

from topk_np._process import Tick, interleave, one_thread, ratio, run_alone
from topk_np.models.decode import generate
from topk_np.models.llama import Llama, LlamaConfig, forward, logits
from topk_np.models.load import load_named

PACKAGED = "smollm2"
READ, LONG = 1024, 8192  # tokens
COMPARED = 256  # whose logits are compared, all of the vocabulary each
PROMPT, WRITTEN = 64, 32
K = 64
GIGA = 10**9


@dataclass(frozen=True)
class Finding:
    """One figure."""

    what: str
    bound: float
    most: bool
    """Whether it may be at most `bound`; at least otherwise."""
    unit: str = ""
    measured: float | None = None
    """None where it could not be."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """CPU seconds of each run."""

    @property
    def ok(self) -> bool | None:
        """True if the measurement keeps to the bound; None if there is none."""
        if self.measured is None:
            return None
        return self.measured <= self.bound if self.most else self.measured >= self.bound


def peer_installed() -> bool:
    """Look for the packages to compare with."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def measure(name: str, repeats: int, tick: Tick) -> Iterator[Finding]:
    """Measure all figures of the model of a name or path, with some rounds for each time."""
    model: Llama = load_named(name, LlamaConfig)
    tokens = text_tokens(model)
    peer = None
    if peer_installed():
        tick("transformers")
        peer = importlib.import_module("topk_np.bench.torch_peers").Transformers(model, 1)
    yield agreement(model, peer, tokens[:COMPARED], tick)
    for k in (None, K):
        yield reading(replace(model, attention_k=k), peer, tokens[:READ], repeats, tick)
    for k in (None, K):
        yield writing(replace(model, attention_k=k), tokens[:PROMPT], repeats, tick)
    del model, peer
    for k in (None, K):
        yield memory(name, k, tick)


def agreement(model: Llama, peer: Any, tokens: np.ndarray, tick: Tick) -> Finding:
    """The distance of logits from the peer's, in units of the largest."""
    what = f"logits of {len(tokens)} tokens, distance from transformers / the largest"
    found = Finding(what, 1e-4, most=True)
    if peer is None:
        return found
    tick("agreement")
    theirs, ours = peer.logits(tokens), logits(model, forward(model, tokens))
    return replace(found, measured=float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))))


def reading(model: Llama, peer: Any, tokens: np.ndarray, repeats: int, tick: Tick) -> Finding:
    """The CPU time in which the model reads a text, over the peer's."""

    def ours() -> np.ndarray:
        with one_thread():  # for BLAS too
            return np.asarray(forward(model, tokens, workers=1))

    runs: dict[str, Callable[[], Any]] = {f"read, {label(model)}": ours}
    if peer is not None:
        runs["read, transformers"] = lambda: peer.forward(tokens)
    seconds = interleave(runs, repeats, tick, clock=process_time)
    what = f"{len(tokens):,} tokens read, {label(model)} / transformers, CPU time on one thread"
    found = Finding(what, 1.5, most=True, seconds=seconds)
    return found if peer is None else replace(found, measured=ratio(*seconds.values()))


def writing(model: Llama, prompt: np.ndarray, repeats: int, tick: Tick) -> Finding:
    """Tokens a second, once the prompt is read."""
    speeds, cpu = [], []
    for _ in range(repeats):
        tick(f"write, {label(model)}")
        tokens = generate(model, prompt, count=WRITTEN + 1)
        next(tokens)
        start, begun = perf_counter(), process_time()
        written = sum(1 for _ in islice(tokens, WRITTEN))
        speeds.append(written / (perf_counter() - start))
        cpu.append((process_time() - begun) / written)
    what = f"tokens written a second, {label(model)}"
    return Finding(what, 15, False, measured=median(speeds), seconds={"a token": cpu})


def memory(name: str, k: int | None, tick: Tick) -> Finding:
    """The peak of a process that loads the model and reads a text."""
    how = "dense" if k is None else f"k = {k}"
    tick(f"read {LONG:,} tokens alone, {how}")
    seconds, peak = run_alone(_read_long, name, k)
    what = f"{LONG:,} tokens read, {how}, peak of the process, weights and all"
    return Finding(what, 2.0, True, " GB", peak / GIGA, {"read": [seconds]})


def _read_long(name: str, k: int | None) -> float:
    """In a process of its own: load the model and read; seconds of the CPU."""
    model: Llama = load_named(name, LlamaConfig, attention_k=k)
    tokens, start = text_tokens(model), process_time()
    forward(model, tokens[:LONG])
    return process_time() - start


def text_tokens(model: Llama, /) -> np.ndarray:
    """The tokens of Python's documentation that are read."""
    text = "\n".join(topics[name] for name in sorted(topics))
    return model.tokenizer.encode(text[: 8 * LONG])[: min(LONG, model.config.context)]


def label(model: Llama, /) -> str:
    """The k of its attention in words."""
    return "dense" if model.attention_k is None else f"k = {model.attention_k}"


def as_data(finding: Finding, /) -> dict[str, object]:
    """A figure for the JSON file."""
    return {**asdict(finding), "ok": finding.ok}


def table(findings: list[Finding], /) -> str:
    """The figures, each with its bound."""
    width = max(len(finding.what) for finding in findings) + 2
    lines = [f"{'':{width}}{'bound':>14}{'measured':>12}"]
    for one in findings:
        bound = f"{'at most' if one.most else 'at least'} {one.bound:g}{one.unit}"
        shown, verdict = "-", "not measured: transformers is not installed"
        if one.measured is not None:
            shown = f"{one.measured:.3g}{one.unit}"
            verdict = "ok" if one.ok else "not ok"
        times = ", ".join(f"{name} {median(times):.3g} s" for name, times in one.seconds.items())
        lines.append(f"{one.what:{width}}{bound:>14}{shown:>12}  {verdict}")
        if times:
            lines.append(f"  CPU: {times}")
    return "\n".join(lines) + "\n"
