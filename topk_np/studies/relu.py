"""Accuracy of a ReLU transformer trained from scratch, with few feed-forward units a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from topk_np._plots import COLOURS, columns, curves, dense_line
from topk_np._process import UserError, describe_ks, markdown, one_thread
from topk_np.runs.classifying import Settings, evaluate
from topk_np.runs.records import CHECKPOINT, State, load_settings, load_state
from topk_np.runs.train import FOLDER, make_model, make_task, run
from topk_np.studies.reading import digest
from topk_np.studies.runner import Point, Prepared, Result, Setting, Tick, dense_result
from topk_np.tasks import Examples, MissingDataError
from topk_np.training.classifier import Classifier, classifier_fwd
from topk_np.training.trees import Tree, flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK, STEPS = "listops", 1500  # what is trained unless a run is given
TESTED, COUNTED = 2000, 200  # examples to test with, and to count active units in
BATCH = 100
LEAST_K = 2

label = describe_ks


def prepare(model: str | None, /) -> Prepared:
    """Load the run in a folder, or train one, and the examples to test it with."""
    folder = Path(FOLDER) / f"{TASK}-relu" if model is None else Path(model)
    if model is None:
        _train(folder)
    try:
        settings = load_settings(folder, Settings)
        task = make_task(settings.task)
        made = make_model(settings, task)
        first = State.first(made.init(np.random.default_rng(0)), averaged=True)
        state = load_state(folder, like=first)
    except OSError as error:
        raise UserError(f"--model {folder}: there is no {CHECKPOINT}") from error
    except MissingDataError:  # of the task
        raise
    except UserError as error:
        raise UserError(str(error) if model is None else f"--model: {error}") from error
    examples = task.test[:TESTED]
    parameters = flatten(state.averaged).values()
    ks = [2**i for i in range(settings.hidden.bit_length()) if LEAST_K <= 2**i < settings.hidden]
    return Prepared(
        about={
            "task": task.name,
            "training": asdict(settings) | {"steps": state.step},
            "examples": len(examples),
            "baselines": task.baselines,
            "tokens": digest([examples.tokens]),
            "parameters": digest([array.view(np.int32) for array in parameters]),
        },
        settings=[{}, *({"ffn_k": k} for k in ks)],
        measure=partial(measure, made, state.averaged, examples),
        steps=lambda setting: -(-len(examples) // BATCH),
    )


def _train(folder: Path) -> None:
    """Train for `STEPS` steps, or go on where that was stopped."""
    held = (folder / CHECKPOINT).exists()
    run(task=TASK, steps=STEPS, out=folder, resume=held, test_k=(), evaluate_every=STEPS)


def measure(
    model: Classifier, params: Tree, examples: Examples, setting: Setting, tick: Tick, /
) -> Result:
    """Accuracy with k units for each token; with all of them also the number that are active."""
    kept = replace(model, block=replace(model.block, ffn_k=setting.get("ffn_k")))
    found = []
    for start in range(0, len(examples), BATCH):
        some = examples[start : start + BATCH]
        tested = evaluate(kept, params, some)
        found.append((tested.accuracy, tested.loss, len(some) / len(examples)))
        tick()
    result: Result = {
        "accuracy": round(sum(accuracy * share for accuracy, _, share in found), 4),
        "loss": round(sum(loss * share for _, loss, share in found), 4),
    }
    if not setting:
        counts = active_units(model, params, examples[:COUNTED])
        result["active"] = [np.bincount(own, minlength=model.hidden + 1).tolist() for own in counts]
    return result


def active_units(model: Classifier, params: Tree, examples: Examples, /) -> list[np.ndarray]:
    """For each layer and each token except padding, the number of units above zero."""
    whole = replace(model.block, ffn_k=model.hidden, recompute=False)  # keeps all scores
    with one_thread():
        _, residuals = classifier_fwd(
            examples.tokens, params, replace(model, block=whole), lengths=examples.lengths
        )
    real = np.arange(examples.tokens.shape[-1]) < examples.lengths[..., None]
    return [np.sum(block.ffn.part.scores > 0, axis=-1)[real] for block in residuals.blocks]


def table(points: Sequence[Point], /) -> str:
    """Accuracy by k, and the share of tokens whose active units are all kept."""
    dense = dense_result(points)
    active = None if dense is None else np.asarray(dense["active"])  # (layers, units + 1) tokens
    head = ["", "accuracy", "loss", "tokens with no more active units"]
    rows = []
    for point in points:
        k, found, fits = point.setting.get("ffn_k"), point.result, ""
        if active is not None and k is not None:
            fits = f"{_share_up_to(active.sum(axis=0), k):.1%}"
        numbers = f"{found['accuracy']:.3f}", f"{found['loss']:.3f}"
        rows.append([label(point.setting), *numbers, fits])
    lines = markdown(head, rows)
    if active is None:
        return lines
    shares = ", ".join(f"{share:.1%}" for share in _mean_shares(active))
    return f"{lines}\n\nUnits that are active for a token, mean of each layer: {shares}."


def draw(points: Sequence[Point], /) -> dict[str, Figure]:
    """Accuracy by k, and the tokens by their number of active units."""
    dense = dense_result(points)
    swapped = {p.setting["ffn_k"]: p.result["accuracy"] for p in points if p.setting}
    if dense is None or not swapped:
        return {}
    active = np.asarray(dense["active"])
    figure, (accuracy, units) = columns(2)
    curves(accuracy, {"top-k": swapped})
    dense_line(accuracy, dense["accuracy"], above=True)
    accuracy.set_title("Accuracy on the test split")
    accuracy.set_xlabel("feed-forward units kept for each token")
    for i, counts in enumerate(active):
        units.stairs(counts / counts.sum(), color=COLOURS[i], linewidth=1.6, label=f"layer {i}")
    units.set_title("Tokens by their number of active units")
    units.set_xlabel(f"active units, of {active.shape[1] - 1}")
    units.yaxis.set_major_formatter("{x:.1%}")
    units.legend()
    return {"relu": figure}


def _share_up_to(counts: np.ndarray, k: int) -> float:
    return float(counts[: k + 1].sum() / counts.sum())


def _mean_shares(active: np.ndarray) -> np.ndarray:
    units = np.arange(active.shape[1])
    means: np.ndarray = (active @ units) / active.sum(axis=1) / units[-1]
    return means
