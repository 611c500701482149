"""What ``python -m topk_np train`` does."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from topk_np._process import make_folder, peak_memory, write_whole
from topk_np.layers import BlockConfig
from topk_np.runs import report
from topk_np.runs.classifying import Classifying, evaluate
from topk_np.runs.folders import choose_folder, resumed
from topk_np.runs.progress import train_with_bar
from topk_np.runs.records import Line, State, read_log
from topk_np.runs.settings import Settings
from topk_np.tasks import Task, load
from topk_np.training.classifier import Classifier
from topk_np.training.trees import flatten

FOLDER = "topk_np_train"
RESULTS = "results.json"
EXPRESSIONS = 20_000  # of ListOps to train on, made in seconds
TEST_KS = (4, 8, 16, 32, 64, 128, 256)


def run(
    *,
    steps: int,
    out: Path | None,
    resume: bool,
    test_k: Sequence[int] | None,
    evaluate_every: int,
    **settings: Any,
) -> dict[str, Any]:
    """
    Train, test, and leave a checkpoint, a log, results and plots in a folder.

    Parameters
    ----------
    steps : int
        Steps in all, with those before a checkpoint.
    out : Path, optional
        The folder; by default one named after the run, in `FOLDER`.
    resume : bool
        Whether to go on from the checkpoint there.
    test_k : sequence of int, optional
        Keys to keep at test time; by default powers of 2 from 4 on.
    evaluate_every : int
        Steps between two looks at the validation split.
    **settings
        Those of `Settings`.

    Returns
    -------
    dict
        What the file of results has.

    Raises
    ------
    UserError, ParamsError, MissingDataError
        With a message of one line.
    KeyboardInterrupt
        After Ctrl-C; the checkpoint is there then.
    """
    import safetensors  # noqa: F401  not only when the first checkpoint is to be saved
    import tqdm  # noqa: F401

    chosen = Settings(**settings)
    folder = choose_folder(Path(FOLDER) / chosen.name, out=out, resume=resume)
    task = make_task(chosen.task)
    model = make_model(chosen, task)
    state = State.first(model.init(np.random.default_rng(chosen.seed)), averaged=True)
    if resume:
        state = resumed(folder, chosen, state)
    make_folder("--out", folder)

    print(report.heading(chosen, task.name, sum(map(np.size, flatten(state.params).values()))))
    print(f"Folder: {folder}")
    held = peak_memory()
    state = train_with_bar(
        Classifying(model, task, chosen),
        state,
        folder,
        name=chosen.name,
        steps=steps,
        evaluate_every=evaluate_every,
    )
    return _finish(model, task, chosen, state, folder, test_k, held)


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


def _finish(
    model: Classifier,
    task: Task,
    settings: Settings,
    state: State,
    folder: Path,
    test_k: Sequence[int] | None,
    held: int,
) -> dict[str, Any]:
    """Test, print, save and draw."""
    memory = peak_memory()
    tested = evaluate(model, state.averaged, task.test)
    swaps = dict(_swapped(model, state, task, test_k, tested.accuracy))
    lines = list(read_log(folder))
    tokens = sum(line.get("tokens", 0) for line in lines)
    speed = tokens / state.seconds if state.seconds else 0.0
    print(
        report.results(
            settings,
            state,
            accuracy=tested.accuracy,
            swaps=swaps,
            baselines=task.baselines,
            speed=speed,
            memory=memory,
            examples=len(task.test),
        )
    )
    found = {
        "task": task.name,
        "settings": asdict(settings),
        "steps": state.step,
        "seconds": round(state.seconds, 2),
        "cpu_seconds": round(state.cpu, 2),
        "tokens_per_second": round(speed),
        "peak_memory": memory,
        "memory_before_training": held,
        "test_examples": len(task.test),
        "test_accuracy": tested.accuracy,
        "test_loss": tested.loss,
        "swapped": swaps,
        "baselines": task.baselines,
    }
    write_whole(folder / RESULTS, (json.dumps(found, indent=1) + "\n").encode())
    _draw(folder, settings, lines, found)
    return found


def _swapped(
    model: Classifier,
    state: State,
    task: Task,
    test_k: Sequence[int] | None,
    own: float,
) -> Iterator[tuple[str, float]]:
    """The accuracy of the same parameters with top-k and with dense attention, by k."""
    if model.block.attention in ("performer", "rfa"):
        return  # what it learned is made for its features
    if test_k is None:
        test_k = [k for k in TEST_KS if k < model.length]
    others = {str(k): replace(model.block, attention="topk", k=k) for k in sorted(test_k)}
    others["dense"] = replace(model.block, attention="dense")
    for k, block in others.items():
        other = replace(model, block=block)
        yield k, own if other == model else evaluate(other, state.averaged, task.test).accuracy


def _draw(folder: Path, settings: Settings, lines: Sequence[Line], found: dict[str, Any]) -> None:
    """The plots, if what draws them is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print("No plots: the package matplotlib is missing: pip install 'topk_np[train]'")
        return
    from topk_np.runs.plots import plot_swaps, plot_training

    title, name = found["task"], report.method(settings)
    plot_training(folder / "training.png", title, {name: lines}, found["baselines"])
    if found["swapped"]:
        plot_swaps(
            folder / "accuracy_by_k.png", title, {name: found["swapped"]}, found["baselines"]
        )
    print(f"Results, log and plots: {folder}")
