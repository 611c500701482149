"""How much of what top-k costs SmolLM2 is repaired by a few dozen steps of training with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from topk_np.experiments.names import Point, Prepared, Result, Setting, Tick
from topk_np.experiments.settings import describe, with_setting
from topk_np.experiments.tables import markdown
from topk_np.experiments.texts import digest
from topk_np.finetuning.settings import Settings
from topk_np.finetuning.steps import FineTuning, make_adapter, read
from topk_np.finetuning.texts import Texts, read_texts
from topk_np.models.llama import Llama, LlamaConfig
from topk_np.models.named import load_named
from topk_np.training.records import State
from topk_np.workers import Crew

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 30
TRAINING = Settings(lora=8, batch=1, length=512, learning_rate=1e-3)
SETTINGS: tuple[Setting, ...] = ({}, {"ffn_k": 512}, {"ffn_k": 256}, {"attention_k": 16})


def prepare(model: str | None, /) -> Prepared:
    """Load the model and its texts."""
    training = replace(TRAINING, model=model or TRAINING.model)
    loaded: Llama = load_named(training.model, LlamaConfig)
    texts = read_texts(loaded.tokenizer, [], training.length)
    return Prepared(
        about={
            "model": training.model,
            "training": {
                "lora": training.lora,
                "batch": training.batch,
                "length": training.length,
                "learning_rate": training.learning_rate,
                "steps": STEPS,
                "seed": training.seed,
            },
            "held_out": texts.tests(training.length).size,
            "tokens": digest(texts),
        },
        settings=SETTINGS,
        measure=partial(measure, loaded, texts, training),
        steps=lambda setting: STEPS + 2 + (1 if setting else len(SETTINGS) - 1),
    )


def measure(
    loaded: Llama, texts: Texts, training: Settings, setting: Setting, tick: Tick, /
) -> Result:
    """Fine-tune with one setting, and read the held-out text before and after."""
    model = with_setting(loaded, setting)
    adapter = make_adapter(model, training)
    work, state = (
        FineTuning(model, adapter, texts, training),
        State.first(adapter.params, averaged=False),
    )
    tests = texts.tests(training.length)

    def perplexity(model: Llama, setting: Setting) -> float:
        found = read(with_setting(model, setting), tests).perplexity
        tick()
        return round(found, 3)

    before = perplexity(model, setting)
    losses = []
    with Crew(1):  # see `topk_np.training.loop.train`
        for _ in range(STEPS):
            state, measured = work.step(state)
            losses.append(round(measured.loss, 4))
            tick()
    tuned = work.tuned(state)
    others = [{}] if setting else [other for other in SETTINGS if other]
    return {
        "before": before,
        "after": perplexity(tuned, setting),
        "swapped": [[other, perplexity(tuned, other)] for other in others],
        "losses": losses,
    }


def label(setting: Setting, /) -> str:
    """A setting in words."""
    return describe(setting)


def table(points: Sequence[Point], /) -> str:
    """A line for each setting, beside the dense model that was tuned the same way."""
    dense = next((point.result for point in points if not point.setting), None)
    head = [
        "",
        "not tuned",
        "tuned with it",
        "loss repaired",
        "tuned dense",
        "tuned with it, dense",
    ]
    rows = []
    for point in points:
        found, setting = point.result, point.setting
        swaps = [] if dense is None else dense["swapped"]
        rows.append(
            [
                describe(setting),
                f"{found['before']:.2f}",
                f"{found['after']:.2f}",
                "" if dense is None or not setting else f"{repaired(found, dense):.0%}",
                *(f"{number:.2f}" for other, number in swaps if other == setting),
                *(f"{number:.2f}" for _, number in found["swapped"] if setting),
            ]
        )
        rows[-1] += [""] * (len(head) - len(rows[-1]))
    return markdown(head, rows)


def repaired(found: Result, dense: Result, /) -> float:
    """The share of the loss that top-k costs before training and no more after it."""
    costs = [math.log(found[when] / dense[when]) for when in ("before", "after")]
    return 1 - costs[1] / costs[0]


def draw(points: Sequence[Point], /) -> dict[str, Figure]:
    """Perplexity before and after, side by side."""
    from matplotlib.figure import Figure

    from topk_np.training.plots import COLOURS, PALE

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, point in enumerate(points):
        for step, (when, colour) in enumerate((("before", PALE), ("after", COLOURS[0]))):
            height = point.result[when]
            bar = axes.bar(place + (step - 0.5) * 0.38, height, 0.36, color=colour)
            axes.bar_label(bar, fmt="%.1f", padding=2)
    axes.set_xticks(range(len(points)), [label(point.setting) for point in points])
    axes.set_title("Perplexity on held-out text")
    return {"repair": figure}
