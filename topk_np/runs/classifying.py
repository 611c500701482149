"""One step of training a classifier, and its accuracy on a split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from topk_np._namespace import Array
from topk_np.layers import cross_entropy, cross_entropy_bwd, cross_entropy_fwd
from topk_np.runs.batches import batch_at, longest
from topk_np.runs.loop import Measured
from topk_np.runs.records import State
from topk_np.runs.settings import Settings
from topk_np.tasks import Examples, Task
from topk_np.training.adamw import adamw
from topk_np.training.classifier import Classifier, classifier, classifier_bwd, classifier_fwd
from topk_np.training.clipping import clip_by_global_norm
from topk_np.training.schedules import constant
from topk_np.training.trees import Tree, tree_map
from topk_np.workers import Crew

TESTED = 64  # examples at once


class Tested(NamedTuple):
    """How a classifier did on some examples."""

    loss: float
    accuracy: float
    tokens: int
    """Without padding."""


@dataclass(frozen=True, eq=False)
class Classifying:
    """A classifier and its task, as the training loop takes them."""

    model: Classifier
    task: Task
    settings: Settings

    def step(self, state: State) -> tuple[State, Measured]:
        """The state after a step on the batch that is next."""
        settings = self.settings
        batch = batch_at(self.task.train, settings.batch, seed=settings.seed, step=state.step)
        return take_step(self.model, state, batch, settings)

    def validate(self, state: State) -> Measured:
        """How the running mean of the parameters does on the validation split."""
        found = evaluate(self.model, state.averaged, self.task.validation)
        return Measured(found.loss, found.tokens, found.accuracy)


def take_step(
    model: Classifier, state: State, batch: Examples, settings: Settings
) -> tuple[State, Measured]:
    """The state after a step on a batch, and how the model did before it."""
    # 1 logits = classifier(batch)
    # 2 loss = cross_entropy(logits, labels)
    # 3 gradients, clipped
    # 4 parameters and moments, moved on
    # 5 the running mean of the parameters, whose first terms count for less and less
    logits, residuals = classifier_fwd(batch.tokens, state.params, model, lengths=batch.lengths)
    loss, loss_residuals = cross_entropy_fwd(logits, batch.labels)
    grads = classifier_bwd(residuals, cross_entropy_bwd(loss_residuals, 1.0))
    grads, norm = clip_by_global_norm(grads, settings.CLIP)
    params, optimiser = adamw(
        state.params,
        grads,
        state.optimiser,
        learning_rate=constant(settings.learning_rate, warmup=settings.WARMUP)(state.step),
        weight_decay=settings.WEIGHT_DECAY,
        decays=tree_map(lambda array: array.ndim > 1, state.params),
    )
    kept = min(settings.AVERAGE, (1 + state.step) / (10 + state.step))
    averaged = tree_map(lambda old, new: kept * old + (1 - kept) * new, state.averaged, params)
    found = _tested(float(loss), logits, batch)
    measured = Measured(found.loss, found.tokens, found.accuracy, float(norm))
    return state._replace(params=params, averaged=averaged, optimiser=optimiser), measured


def evaluate(model: Classifier, params: Tree, examples: Examples) -> Tested:
    """How a model does on a split: the mean over its examples."""
    order = np.argsort(longest(examples), kind="stable")
    found = []
    with Crew(1):  # see `train`
        for start in range(0, len(order), TESTED):
            some = examples[order[start : start + TESTED]]
            logits = classifier(some.tokens, params, model, lengths=some.lengths)
            loss = float(cross_entropy(logits, some.labels))
            found.append((_tested(loss, logits, some), len(some) / len(examples)))
    return Tested(
        loss=sum(one.loss * share for one, share in found),
        accuracy=sum(one.accuracy * share for one, share in found),
        tokens=sum(one.tokens for one, _ in found),
    )


def _tested(loss: float, logits: Array, examples: Examples) -> Tested:
    right = np.mean(np.argmax(logits, axis=1) == examples.labels)
    return Tested(loss, float(right), int(examples.lengths.sum()))
