"""Training a classifier: its settings, batches, one step, and its accuracy on a split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from topk_np._namespace import Array
from topk_np._process import one_thread
from topk_np.layers import cross_entropy, cross_entropy_bwd, cross_entropy_fwd
from topk_np.runs.loop import Measured, descend
from topk_np.runs.records import RunSettings, State
from topk_np.tasks import Examples
from topk_np.training.classifier import Classifier, classifier, classifier_bwd, classifier_fwd
from topk_np.training.trees import Tree, tree_map

POOL = 16  # batches drawn together and sorted by length
TESTED = 64  # examples at once


@dataclass(frozen=True)
class Settings(RunSettings):
    """Settings of a classifier trained from scratch."""

    task: str
    attention: str = "dense"
    k: int = 16
    """Keys kept for each query, in top-k attention."""
    ffn_k: int | None = None
    """Feed-forward units kept for each token; None: all."""
    seed: int = 0
    batch: int = 32
    learning_rate: float = 1e-3
    layers: int = 2
    width: int = 64
    heads: int = 4
    hidden: int = 256
    """Units of a feed-forward layer."""
    features: int = 64
    """Random features of a head, in Performer and RFA."""
    recompute: bool = False
    """Whether the backward pass recomputes the activations of a block instead of keeping them."""

    WARMUP = 100
    WEIGHT_DECAY = 0.01
    AVERAGE = 0.995
    """
    The share of the running mean of the parameters that stays in each step. This mean is tested: it
    does for accuracy what a falling learning rate does, and needs no end that is known before.
    """
    CHUNK = 64
    """Queries at once in chunked attention."""

    @property
    def name(self) -> str:
        """Task and method, as in the names of files."""
        method = f"topk{self.k}" if self.attention == "topk" else self.attention
        units = "" if self.ffn_k is None else f"-ffn{self.ffn_k}"
        return f"{self.task}-{method}{units}-seed{self.seed}"


def batch_at(examples: Examples, size: int, /, *, seed: int, step: int) -> Examples:
    """
    The batch of a step: `Examples.batch`, `POOL` at a time, cut into batches of similar lengths.

    It depends on nothing but the arguments, so that training can go on from any step.
    """
    pool = examples.batch(POOL * size, seed=seed, step=step // POOL)
    order = np.argsort(longest(pool), kind="stable")
    turn = np.random.default_rng((seed, step // POOL)).permutation(POOL)[step % POOL]
    return pool[order[turn * size : (turn + 1) * size]]


def longest(examples: Examples) -> np.ndarray:
    """(n,) the length of each example, and of a pair that of the longer one."""
    lengths: np.ndarray = examples.lengths.reshape(len(examples), -1).max(axis=1)
    return lengths


def take_step(
    model: Classifier, state: State, batch: Examples, settings: Settings
) -> tuple[State, Measured]:
    """The state after a step on a batch, and the figures of the batch before it."""
    # 1 logits = classifier(batch)
    # 2 loss = cross_entropy(logits, labels)
    # 3 parameters and moments, moved along the clipped gradients
    # 4 the running mean of the parameters, whose first terms count for less and less
    logits, residuals = classifier_fwd(batch.tokens, state.params, model, lengths=batch.lengths)
    loss, loss_residuals = cross_entropy_fwd(logits, batch.labels)
    grads = classifier_bwd(residuals, cross_entropy_bwd(loss_residuals, 1.0))
    moved, norm = descend(state, grads, settings)
    kept = min(settings.AVERAGE, (1 + state.step) / (10 + state.step))
    averaged = tree_map(
        lambda old, new: kept * old + (1 - kept) * new, state.averaged, moved.params
    )
    measured = _measured(float(loss), logits, batch)._replace(norm=norm)
    return moved._replace(averaged=averaged), measured


def evaluate(model: Classifier, params: Tree, examples: Examples) -> Measured:
    """The figures of a model on a split: means over its examples."""
    order = np.argsort(longest(examples), kind="stable")
    losses, accuracies = [], []
    with one_thread():
        for start in range(0, len(order), TESTED):
            some = examples[order[start : start + TESTED]]
            logits = classifier(some.tokens, params, model, lengths=some.lengths)
            share = len(some) / len(examples)
            losses.append(share * float(cross_entropy(logits, some.labels)))
            accuracies.append(share * _accuracy(logits, some))
    return Measured(sum(losses), examples.count, sum(accuracies))


def _measured(loss: float, logits: Array, examples: Examples) -> Measured:
    return Measured(loss, examples.count, _accuracy(logits, examples))


def _accuracy(logits: Array, examples: Examples) -> float:
    return float(np.mean(np.argmax(logits, axis=1) == examples.labels))
