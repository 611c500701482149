"""One step of fine-tuning a language model, and how well it reads what was held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from topk_np.models.adapter import MATRICES, Adapter
from topk_np.models.llama import forward, loss_bwd, loss_fwd
from topk_np.models.llama_blocks import Llama
from topk_np.models.scoring import next_tokens
from topk_np.runs.finetune_settings import Settings
from topk_np.runs.loop import Measured
from topk_np.runs.records import State
from topk_np.runs.texts import Texts
from topk_np.training.adamw import adamw
from topk_np.training.clipping import clip_by_global_norm
from topk_np.training.schedules import constant
from topk_np.training.trees import tree_map
from topk_np.workers import Crew


def make_adapter(model: Llama, settings: Settings) -> Adapter:
    """What is trained, as it is at first."""
    if settings.lora is None:
        return Adapter.of_weights(model.params, only=settings.only or ("*",))
    rng, only = np.random.default_rng(settings.seed), settings.only or MATRICES
    return Adapter.low_rank(model.params, rng, rank=settings.lora, only=only)


@dataclass(frozen=True, eq=False)
class FineTuning:
    """A model, what is trained of it, and on what, as the training loop takes them."""

    model: Llama
    adapter: Adapter
    texts: Texts
    settings: Settings

    def step(self, state: State) -> tuple[State, Measured]:
        """The state after a step on the batch that is next."""
        settings = self.settings
        tokens = self.texts.batch(
            settings.batch, settings.length, seed=settings.seed, step=state.step
        )
        # 1 weights = those of the model, with what is trained in their place or merged in
        # 2 loss = how well each token is foreseen
        # 3 gradients of what is trained, clipped
        # 4 parameters and moments, moved on
        adapter = self.trained(state)
        loss, residuals = loss_fwd(adapter.apply(self.model), tokens, recompute=settings.recompute)
        grads = loss_bwd(residuals, keep=adapter.keep())
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
        foreseen = settings.batch * (settings.length - 1)
        measured = Measured(float(loss), foreseen, norm=float(norm))
        return state._replace(params=params, optimiser=optimiser), measured

    def validate(self, state: State) -> Measured:
        """How well the held-out text is read."""
        found = read(self.tuned(state), self.texts.tests(self.settings.length))
        return Measured(found.loss, found.tokens, found.accuracy)

    def trained(self, state: State) -> Adapter:
        """What is trained, as it is by now."""
        return replace(self.adapter, params=state.params)

    def tuned(self, state: State) -> Llama:
        """The model as it is by now."""
        return self.trained(state).apply(self.model)


class Reading(NamedTuple):
    """How well texts were foreseen."""

    loss: float
    accuracy: float
    """Of the most probable next tokens."""
    tokens: int
    """That were foreseen."""

    @property
    def perplexity(self) -> float:
        """Exp of the loss."""
        return float(np.exp(self.loss))


def read(model: Llama, texts: np.ndarray, tick: Callable[[], object] = lambda: None, /) -> Reading:
    """Read texts (., Q) one by one; `tick` is called after each."""
    losses, hits = [], []
    with Crew(1):  # see `train`
        for tokens in texts:
            seen = next_tokens(model, forward(model, tokens), tokens)
            losses.append(np.mean(seen.loss, dtype=np.float64))
            hits.append(np.mean(seen.best == tokens[1:]))
            tick()
    return Reading(float(np.mean(losses)), float(np.mean(hits)), texts[:, 1:].size)
