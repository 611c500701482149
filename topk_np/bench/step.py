"""
One step of training a small transformer: forward and backward pass, and AdamW.

Its case has the heads, the length, the width and k; the other sizes are here. `torch_peers` has the
same in PyTorch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from topk_np._namespace import Array
from topk_np._process import one_thread
from topk_np.bench.cases import STEP, Case, Inputs, Runs
from topk_np.layers import BlockConfig, cross_entropy_bwd, cross_entropy_fwd
from topk_np.training import adamw, adamw_init
from topk_np.training.classifier import Classifier, classifier_bwd, classifier_fwd

BATCH, LAYERS, HIDDEN, VOCABULARY, CLASSES = 32, 2, 256, 256, 10
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01


class Batch(NamedTuple):
    """Sequences of tokens, and the class of each."""

    tokens: Array
    """(B, N) int64."""
    labels: Array
    """(B,) int64."""


def step_case(k: int = 16) -> Case:
    """A model of width 64 with four heads, on 128 tokens."""
    return Case(STEP, 4, 128, 128, 64, k)


def make_batch(case: Case, /) -> Batch:
    """Random tokens and classes, the same in every process."""
    draw = np.random.default_rng(0)
    return Batch(draw.integers(0, VOCABULARY, (BATCH, case.keys)), draw.integers(0, CLASSES, BATCH))


def make_model(case: Case, attention: str, /) -> Classifier:
    """The classifier of a case that attends in this way."""
    return Classifier(
        vocabulary=VOCABULARY,
        classes=CLASSES,
        length=case.keys,
        layers=LAYERS,
        width=case.width,
        hidden=HIDDEN,
        block=BlockConfig(
            heads=case.heads,
            attention=attention,
            k=case.k,
            # Threads that share a core take more of its time than one, and the peer has one.
            attention_options={"workers": 1},
            ffn_options={"workers": 1},
        ),
    )


def topk(case: Case, inputs: Inputs) -> Runs:
    """With top-k attention."""
    return _runs(case, "topk")


def dense(case: Case, inputs: Inputs) -> Runs:
    """With dense attention."""
    return _runs(case, "dense")


def _runs(case: Case, attention: str) -> Runs:
    model, batch = make_model(case, attention), make_batch(case)
    params = model.init(np.random.default_rng(0))
    state = adamw_init(params)

    def step() -> tuple[float]:
        nonlocal params, state
        with one_thread():  # as `train` does
            logits, residuals = classifier_fwd(batch.tokens, params, model)
            loss, loss_residuals = cross_entropy_fwd(logits, batch.labels)
            grads = classifier_bwd(residuals, cross_entropy_bwd(loss_residuals, 1.0))
            params, state = adamw(
                params,
                grads,
                state,
                learning_rate=LEARNING_RATE,
                weight_decay=WEIGHT_DECAY,
            )
        return (float(loss),)

    return Runs(step, step)
