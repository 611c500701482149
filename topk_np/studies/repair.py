"""Repair of the cost of top-k to SmolLM2 by a few dozen steps of training with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from topk_np._process import describe_ks, markdown, one_thread
from topk_np.models.llama import Llama, LlamaConfig
from topk_np.models.load import load_named
from topk_np.runs.finetune import FineTuning
from topk_np.runs.language import Settings, Texts, make_adapter, read, read_texts
from topk_np.runs.records import State
from topk_np.studies.reading import digest, with_setting
from topk_np.studies.runner import Point, Prepared, Result, Setting, Tick, dense_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 30
TESTS = 8  # sequences of the held-out text
TRAINING = Settings(lora=8, batch=1, length=256, learning_rate=1e-3)
SETTINGS: tuple[Setting, ...] = ({}, {"ffn_k": 512}, {"attention_k": 16}, {"ffn_k": 256})

label = describe_ks


def prepare(model: str | None, /) -> Prepared:
    """Load the model and its texts."""
    training = replace(TRAINING, model=model or TRAINING.model)
    loaded: Llama = load_named(training.model, LlamaConfig)
    texts = read_texts(loaded.tokenizer, [], training.length)
    tests = texts.tests(training.length)[:TESTS]
    names = "lora", "batch", "length", "learning_rate", "seed"
    return Prepared(
        about={
            "model": training.model,
            "training": {name: getattr(training, name) for name in names} | {"steps": STEPS},
            "held_out_tokens": tests.size,
            "tokens": digest(texts),
        },
        settings=SETTINGS,
        measure=partial(measure, loaded, texts, tests, training),
        steps=lambda setting: STEPS + len(tests) * (2 + len(_others(setting))),
    )


def measure(
    loaded: Llama,
    texts: Texts,
    tests: np.ndarray,
    training: Settings,
    setting: Setting,
    tick: Tick,
    /,
) -> Result:
    """Fine-tune with one setting, and read the held-out text before and after."""

    def perplexity(model: Llama, setting: Setting) -> float:
        return round(read(with_setting(model, setting), tests, tick).perplexity, 3)

    model = with_setting(loaded, setting)
    adapter = make_adapter(model, training)
    work = FineTuning(model, adapter, texts, training)
    before, losses = perplexity(model, setting), []
    state = State.first(adapter.params, averaged=False)
    with one_thread():
        for _ in range(STEPS):
            state, measured = work.step(state)
            losses.append(round(measured.loss, 4))
            tick()
    tuned = work.tuned(state)
    return {
        "before": before,
        "after": perplexity(tuned, setting),
        "others": [[other, perplexity(tuned, other)] for other in _others(setting)],
        "losses": losses,
    }


def _others(setting: Setting) -> list[Setting]:
    """Other settings for the tuned model: dense where it was tuned with top-k, and back."""
    return [{}] if setting else [other for other in SETTINGS if other]


def table(points: Sequence[Point], /) -> str:
    """Each setting before and after, next to the dense model that was tuned the same way."""
    dense = dense_result(points)
    head = ["perplexity on held-out text", "not tuned", "tuned dense", "tuned with it", "repaired"]
    rows = []
    for point in points:
        found, setting = point.result, point.setting
        tuned_dense, share = "", ""
        if dense is not None:
            tuned_dense = f"{_of(dense, setting):.2f}"
            share = f"{repaired(found, dense):.0%}" if setting else ""
        before, after = f"{found['before']:.2f}", f"{found['after']:.2f}" if setting else ""
        rows.append([label(setting), before, tuned_dense, after, share])
    return markdown(head, rows)


def repaired(found: Result, dense: Result, /) -> float:
    """
    The share of the cost of top-k that training with it repairs; NaN where it costs nothing.

    The cost is the loss beyond that of the dense model, before, or tuned the same way.
    """
    before, after = (math.log(found[when] / dense[when]) for when in ("before", "after"))
    return 1 - after / before if before else math.nan


def _of(dense: Result, setting: Setting) -> float:
    """The perplexity of the dense tuned model when read with a setting."""
    if not setting:
        return float(dense["after"])
    return next(float(number) for other, number in dense["others"] if other == setting)


def draw(points: Sequence[Point], /) -> dict[str, Figure]:
    """Perplexity not tuned, tuned dense, and tuned with it, side by side."""
    dense = dense_result(points)
    if dense is None or len(points) == 1:
        return {}
    from matplotlib.figure import Figure

    from topk_np._plots import COLOURS, PALE

    groups = []
    for point in points:
        found = [point.result["before"], _of(dense, point.setting), point.result["after"]]
        groups.append(found if point.setting else found[:2])
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots()
    series = {"not tuned": PALE, "tuned dense": COLOURS[1], "tuned with it": COLOURS[0]}
    for i, (name, colour) in enumerate(series.items()):
        places = [place for place, group in enumerate(groups) if len(group) > i]
        at = [place + 0.27 * (i - (len(groups[place]) - 1) / 2) for place in places]
        heights = [groups[place][i] for place in places]
        bars = axes.bar(at, heights, 0.25, color=colour, label=name)
        axes.bar_label(bars, fmt="%.1f", padding=2, size=9)
    axes.set_xticks(range(len(points)), [label(point.setting) for point in points])
    axes.tick_params(axis="x", length=0)
    axes.set_title(f"Perplexity on held-out text, {STEPS} steps of low-rank updates")
    axes.legend()
    return {"repair": figure}
