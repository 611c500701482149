"""Search of SmolLM2, dense and with top-k, for a pass key that is hidden in a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from topk_np import KVCache
from topk_np._process import describe_ks, markdown
from topk_np.models.llama import Llama, LlamaConfig, forward
from topk_np.models.load import load_named
from topk_np.models.scoring import next_tokens
from topk_np.studies.reading import SOURCES, Prompt, digest, hide, sequences, with_setting
from topk_np.studies.runner import Point, Prepared, Result, Setting, Tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKENS = 1024
TRIES = 24  # shared by the texts
ATTENTION_KS = (128, 64, 32, 16, 8, 4)
FFN_KS = (512, 256)
SEED = 0  # what the keys are drawn from

label = describe_ks


def prepare(model: str | None, /) -> Prepared:
    """Load the model, and hide the keys."""
    model = model or "smollm2"
    loaded: Llama = load_named(model, LlamaConfig)
    texts = sequences(loaded.tokenizer, (0,), TOKENS)
    prompts = make_prompts(loaded, texts)
    return Prepared(
        about={
            "model": model,
            "texts": list(SOURCES),
            "length": TOKENS,
            "tries": len(prompts),
            "tokens": digest([prompt.ids for prompt in prompts]),
        },
        settings=list(settings()),
        measure=partial(measure, loaded, prompts),
        steps=lambda setting: len(prompts),
    )


def settings() -> Iterator[Setting]:
    """The settings to measure with."""
    yield {}
    yield from ({"attention_k": k} for k in ATTENTION_KS)
    yield from ({"ffn_k": k} for k in FFN_KS)


def make_prompts(model: Llama, texts: Sequence[np.ndarray], /) -> list[Prompt]:
    """Prompts at all depths, each with a key of its own, and with a text in turn."""
    keys = np.random.default_rng(SEED).choice(np.arange(10_000, 100_000), TRIES, replace=False)
    return [
        hide(model.tokenizer, texts[i % len(texts)], str(key), depth=(i + 0.5) / TRIES)
        for i, key in enumerate(keys)
    ]


def measure(model: Llama, prompts: Sequence[Prompt], setting: Setting, tick: Tick, /) -> Result:
    """Ask for all keys: the number found, and a mark for each, those near the beginning first."""
    own, texts = with_setting(model, setting), len(SOURCES)
    right = [False] * len(prompts)
    for first in range(texts):
        right[first::texts] = find_keys(own, prompts[first::texts], tick)
    return {"found": sum(right), "right": "".join("-+"[one] for one in right)}


def find_keys(model: Llama, prompts: Sequence[Prompt], tick: Tick, /) -> list[bool]:
    """
    Look for the key of each prompt, of prompts with one text in which the key is ever deeper.

    The text before a key is read once: the next prompt goes on with its keys and values.
    """
    caches = [KVCache(capacity=len(prompts[0].ids)) for _ in model.params["layers"]]
    right, done = [], 0
    for prompt in prompts:
        if prompt.before > done:
            forward(model, prompt.ids[done : prompt.before], caches=caches)
        hidden = forward(model, prompt.ids[prompt.before :], caches=caches)
        asked = prompt.digits + 1  # and the token before the first digit
        seen = next_tokens(model, hidden[-asked:], prompt.ids[-asked:])
        right.append(bool(np.all(seen.best == prompt.ids[-prompt.digits :])))
        done = prompt.before
        for cache in caches:
            cache.truncate(done)
        tick()
    return right


def table(points: Sequence[Point], /) -> str:
    """The number of keys that are found."""
    tries = len(points[0].result["right"])
    rows = [[label(p.setting), f"{p.result['found']} of {tries}"] for p in points]
    return markdown([f"{TOKENS:,} tokens", "keys found"], rows)


def draw(points: Sequence[Point], /) -> dict[str, Figure]:
    """A dot for each try, by how deep the key is hidden; a full one where it is found."""
    from matplotlib.figure import Figure

    from topk_np._plots import COLOURS, QUIET

    tries = len(points[0].result["right"])
    depths = (np.arange(tries) + 0.5) / tries
    figure = Figure(figsize=(9, 1.2 + 0.36 * len(points)), layout="constrained")
    axes = figure.subplots()
    for row, point in enumerate(points):
        right = np.array([mark == "+" for mark in point.result["right"]])
        colour = COLOURS[1] if not point.setting else COLOURS[0]
        axes.scatter(depths[right], np.full(right.sum(), row), s=70, color=colour)
        axes.scatter(
            depths[~right], np.full((~right).sum(), row), s=70, facecolor="none", edgecolor=QUIET
        )
        axes.annotate(
            f"{point.result['found']} of {tries}", (1.03, row), va="center", annotation_clip=False
        )
    axes.set_yticks(range(len(points)), [label(point.setting) for point in points])
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["beginning", "middle", "end"])
    axes.set_xlabel(f"where the pass key is hidden in {TOKENS:,} tokens")
    axes.set_title("Pass keys that are found (full) and missed (hollow)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return {"passkey": figure}
