"""One step of fine-tuning a model on text, and the loss and accuracy on held-out text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from topk_np.finetuning.settings import Settings
from topk_np.finetuning.texts import Texts
from topk_np.models.adapter import MATRICES, Adapter
from topk_np.models.load import family_of, loss_bwd, loss_fwd
from topk_np.models.model import Model
from topk_np.schedule.threads import WorkerTeam
from topk_np.training.adamw import adamw
from topk_np.training.clipping import clip_by_global_norm
from topk_np.training.loop import Measured
from topk_np.training.records import State
from topk_np.training.schedules import constant
from topk_np.training.trees import tree_map


def make_adapter(model: Model[Any], settings: Settings) -> Adapter:
    """The weights or updates that are trained, before the first step."""
    if settings.lora is None:
        return Adapter.of_weights(model.params, only=settings.only or ("*",))
    rng, only = np.random.default_rng(settings.seed), settings.only or MATRICES
    return Adapter.low_rank(model.params, rng, rank=settings.lora, only=only)


@dataclass(frozen=True, eq=False)
class FineTuning:
    """A model, the part of it that is trained, and texts, as the training loop takes them."""

    model: Model[Any]
    adapter: Adapter
    texts: Texts
    settings: Settings

    def step(self, state: State) -> tuple[State, Measured]:
        """The state after a step on the next batch."""
        settings = self.settings
        tokens = self.texts.batch(
            settings.batch, settings.length, seed=settings.seed, step=state.step
        )
        rng = np.random.default_rng((settings.seed, state.step, 1))
        # 1 weights = those of the model, with the trained ones in place or merged in
        # 2 loss = mean over the tokens to predict
        # 3 gradients of the trained weights, clipped
        # 4 parameters and moments after the step
        adapter = self.trained(state)
        model = adapter.apply(self.model)
        data, labels = family_of(model).examples(model, tokens, rng)
        loss, residuals = loss_fwd(model, *data, recompute=settings.recompute)
        grads = loss_bwd(model, residuals, keep=adapter.keep())
        del residuals
        grads, norm = clip_by_global_norm(grads, settings.CLIP)
        params, optimiser = adamw(
            state.params,
            grads,
            state.optimiser,
            learning_rate=constant(settings.learning_rate, warmup=settings.WARMUP)(state.step),
            weight_decay=settings.WEIGHT_DECAY,
            decays=tree_map(lambda array: array.ndim > 1, state.params),
        )
        measured = Measured(float(loss), labels, norm=float(norm))
        return state._replace(params=params, optimiser=optimiser), measured

    def validate(self, state: State) -> Measured:
        """Loss and accuracy on the held-out text."""
        found = read(self.tuned(state), self.texts.tests(self.settings.length))
        return Measured(found.loss, found.tokens, found.accuracy)

    def trained(self, state: State) -> Adapter:
        """The trained weights or updates in a state."""
        return replace(self.adapter, params=state.params)

    def tuned(self, state: State) -> Model[Any]:
        """The model in a state."""
        return self.trained(state).apply(self.model)


class Reading(NamedTuple):
    """Loss and accuracy on texts."""

    loss: float
    accuracy: float
    """Of the most probable next tokens."""
    tokens: int
    """The number of tokens that were predicted."""

    @property
    def perplexity(self) -> float:
        """Exp of the loss."""
        return float(np.exp(self.loss))


def read(
    model: Model[Any], texts: np.ndarray, tick: Callable[[], object] = lambda: None, /
) -> Reading:
    """Read texts (., Q) one by one; `tick` is called after each."""
    family, losses, hits, count = family_of(model), [], [], 0
    with WorkerTeam(1):  # see `train`
        for i, tokens in enumerate(texts):
            data, labels = family.examples(model, tokens, np.random.default_rng(i))
            seen, right = family.guess(model, *data)
            losses.append(np.mean(seen.loss, dtype=np.float64))
            hits.append(np.mean(seen.best == right))
            count += labels
            tick()
    return Reading(float(np.mean(losses)), float(np.mean(hits)), count)
