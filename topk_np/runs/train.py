"""The program ``python -m topk_np train``: train a classifier from scratch, and test it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from topk_np._process import MEBI
from topk_np.layers import BlockConfig
from topk_np.runs import loop
from topk_np.runs.classifying import Settings, batch_at, evaluate, take_step
from topk_np.runs.loop import Facts, Measured
from topk_np.runs.records import State, read_log
from topk_np.tasks import Task, load
from topk_np.training.classifier import Classifier
from topk_np.training.trees import flatten

FOLDER = "topk_np_train"
EXPRESSIONS = 20_000  # of ListOps to train on, made in seconds
TEST_KS = (4, 8, 16, 32, 64, 128, 256)
WIDTH = 34  # of the words in the report


def run(
    *,
    steps: int,
    out: Path | None,
    resume: bool,
    test_k: Sequence[int] | None,
    evaluate_every: int,
    **settings: Any,
) -> Facts:
    """
    Train, test, and leave a checkpoint, a log, results and plots in a folder.

    Parameters
    ----------
    steps, out, resume, evaluate_every
        As for `topk_np.runs.loop.run`.
    test_k : sequence of int, optional
        Keys to keep at test time; by default powers of 2 from 4 on.
    **settings
        Those of `Settings`.

    Returns
    -------
    dict
        The content of the file of results.

    Raises
    ------
    UserError
        With a message of one line.
    KeyboardInterrupt
        After Ctrl-C; the checkpoint is there then.
    """
    return loop.run(
        Settings(**settings),
        partial(prepare, test_k=test_k),
        home=FOLDER,
        steps=steps,
        out=out,
        resume=resume,
        evaluate_every=evaluate_every,
    )


def prepare(settings: Settings, /, *, test_k: Sequence[int] | None) -> Training:
    """Load the task, and make the model for it."""
    task = make_task(settings.task)
    return Training(make_model(settings, task), task, settings, test_k)


def make_task(name: str) -> Task:
    """The task of a name; its data do not depend on the seed of a run."""
    return load(name, **({"train": EXPRESSIONS} if name.startswith("listops") else {}))


def make_model(settings: Settings, task: Task) -> Classifier:
    """The classifier for a task."""
    splits = (task.train, task.validation, task.test)
    names = "heads", "attention", "k", "ffn_k", "features", "seed", "recompute"
    block = BlockConfig(
        chunk_size=settings.CHUNK, **{name: getattr(settings, name) for name in names}
    )
    return Classifier(
        vocabulary=task.vocabulary,
        classes=task.classes,
        length=max(split.tokens.shape[-1] for split in splits),
        pairs=task.train.tokens.ndim == 3,
        layers=settings.layers,
        width=settings.width,
        hidden=settings.hidden,
        block=block,
    )


@dataclass(frozen=True, eq=False)
class Training:
    """A classifier and its task, as `topk_np.runs.loop.Work`."""

    model: Classifier
    task: Task
    settings: Settings
    test_k: Sequence[int] | None

    def first(self) -> State:
        """The state before the first step."""
        rng = np.random.default_rng(self.settings.seed)
        return State.first(self.model.init(rng), averaged=True)

    def heading(self, state: State) -> str:
        """Task, method, and sizes of the model."""
        settings, params = self.settings, sum(map(np.size, flatten(state.params).values()))
        return (
            f"{self.task.name}: {method(settings)}; {settings.layers} layers of width "
            f"{settings.width}, {settings.heads} heads, {settings.hidden} feed-forward units; "
            f"{params:,} parameters"
        )

    def step(self, state: State) -> tuple[State, Measured]:
        """The state after a step on the next batch."""
        settings = self.settings
        batch = batch_at(self.task.train, settings.batch, seed=settings.seed, step=state.step)
        return take_step(self.model, state, batch, settings)

    def validate(self, state: State) -> Measured:
        """The figures of the running mean of the parameters on the validation split."""
        return evaluate(self.model, state.averaged, self.task.validation)

    def leave(self, state: State, folder: Path) -> None:
        """Save nothing: the checkpoint has it all."""

    def results(self, state: State, facts: Facts) -> Facts:
        """Test the model on the test split, with its own attention and with others."""
        tested = evaluate(self.model, state.averaged, self.task.test)
        return {
            "task": self.task.name,
            **facts,
            "tokens_per_second": round(facts["tokens_per_second"]),
            "test_examples": len(self.task.test),
            "test_accuracy": tested.accuracy,
            "test_loss": tested.loss,
            "swapped": dict(self._swapped(state, tested.accuracy)),
            "baselines": self.task.baselines,
        }

    def _swapped(self, state: State, own: float) -> Iterator[tuple[str, float]]:
        """The accuracy of the same parameters with top-k and with dense attention, by k."""
        model = self.model
        if model.block.attention in ("performer", "rfa"):
            return  # what it learned is made for its features
        ks = [k for k in TEST_KS if k < model.length] if self.test_k is None else self.test_k
        others = {str(k): replace(model.block, attention="topk", k=k) for k in sorted(ks)}
        others["dense"] = replace(model.block, attention="dense")
        for k, block in others.items():
            other = replace(model, block=block)
            same = other == model
            yield k, own if same else evaluate(other, state.averaged, self.task.test).accuracy

    def report(self, found: Facts, folder: Path) -> None:
        """Print the results, and draw them."""
        print(describe(found))
        _draw(folder, self.settings, found)


def method(settings: Settings) -> str:
    """The kind of attention, and the number of feed-forward units that are kept."""
    attention = {
        "dense": "dense attention",
        "chunked": "dense attention in chunks of queries",
        "topk": f"top-k attention, k = {settings.k}",
        "performer": f"Performer, {settings.features} features",
        "rfa": f"random feature attention, {settings.features} features",
    }[settings.attention]
    return attention + (f", feed-forward k = {settings.ffn_k}" if settings.ffn_k else "")


def describe(found: Mapping[str, Any]) -> str:
    """Accuracy on the test split next to that of the baselines, and with another k."""
    accuracy, examples = found["test_accuracy"], found["test_examples"]
    error = (accuracy * (1 - accuracy) / examples) ** 0.5
    lines = [
        f"{found['steps']:,} steps in {found['seconds']:.1f} s, "
        f"{found['tokens_per_second']:,.0f} tokens/s, "
        f"{found['peak_memory'] / MEBI:,.0f} MiB at the peak",
        "",
        f"{'accuracy on the test split':{WIDTH}}{examples:,} examples",
        "-" * (WIDTH + 20),
        *(_line(f"  {name}, no model", height) for name, height in found["baselines"].items()),
        _line("  this model", accuracy) + f"  (standard error {error:.3f})",
    ]
    if found["swapped"]:
        lines.append("the same parameters, other attention")
        lines += [
            _line(f"  {'dense' if k == 'dense' else f'top-k, k = {k}'}", height)
            for k, height in found["swapped"].items()
        ]
    return "\n".join(lines)


def _line(name: str, accuracy: float) -> str:
    return f"{name:{WIDTH}}{accuracy:.3f}"


def _draw(folder: Path, settings: Settings, found: Facts) -> None:
    """Save the plots, if the package that draws them is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print("No plots: the package matplotlib is missing: pip install 'topk_np[train]'")
        return
    from topk_np.runs.plots import plot_swaps, plot_training

    title, name = found["task"], method(settings)
    lines = list(read_log(folder))
    plot_training(folder / "training.png", title, {name: lines}, found["baselines"])
    if found["swapped"]:
        plot_swaps(
            folder / "accuracy_by_k.png", title, {name: found["swapped"]}, found["baselines"]
        )
    print(f"Results, log and plots: {folder}")
