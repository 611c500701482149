"""Properties of dropout, whose random numbers are every implementation's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from topk_np.testing.definition import solve
from topk_np.testing.law import Law
from topk_np.testing.laws.base import Attention
from topk_np.testing.laws.gradients import gradients_agree
from topk_np.testing.problems import AttentionProblem
from topk_np.testing.subject import near


def dropout(subject: Attention, problem: AttentionProblem) -> None:
    """A weight is dropped, or divided by 1 - rate; the same seed drops the same."""
    _dropped(subject, problem)
    wanted = solve(problem, _dropped(subject, problem))
    rows = (wanted.clear & wanted.keeping)[..., None]
    near("the output", subject.out_of(problem), wanted.out, problem.tolerance("out"), rows)


def dropout_share(subject: Attention, problem: AttentionProblem) -> None:
    """The share of dropped weights is the rate, but for chance (six standard deviations)."""
    rate = problem.options["dropout"][0]
    kept, dropped = solve(problem).kept, _dropped(subject, problem)
    share, count = float(dropped[kept].mean()), int(kept.sum())
    if not abs(share - rate) <= 6 * (rate * (1 - rate) / count) ** 0.5:
        raise AssertionError(f"{share:.1%} of {count} weights are dropped, expected {rate:.0%}")


def dropout_chunks(subject: Attention, problem: AttentionProblem) -> None:
    """The weights that are dropped do not depend on the chunk size."""
    whole = problem.without("chunk_size")
    if not np.array_equal(_dropped(subject, problem), _dropped(subject, whole)):
        raise AssertionError("other weights are dropped than without the option")


def gradients_dropout(subject: Attention, problem: AttentionProblem) -> None:
    """The backward pass drops what the forward pass dropped."""
    gradients_agree(subject, problem, dropped=_dropped(subject, problem))


def _dropped(subject: Attention, problem: AttentionProblem) -> np.ndarray:
    """Boolean (..., Q, N): the kept weights that are dropped, seen through values that are I."""
    identity = np.eye(problem.keys, dtype=problem.value.dtype)
    value = np.array(np.broadcast_to(identity, (*problem.lead, *identity.shape)))
    out = subject.out_of(replace(problem, value=value))
    kept = solve(problem).kept
    if out.shape != kept.shape:
        raise AssertionError(f"the output has shape {out.shape}, expected {kept.shape}")
    dropped: np.ndarray = kept & (out == 0)
    return dropped


def _many_weights(subject: Attention) -> SearchStrategy[AttentionProblem]:
    """Problems of 10,000 weights."""
    lead = (1,) * (subject.leading_axes or 0)
    array = np.ones((*lead, 100, 1), subject.dtype)
    k = {"k": 100} if subject.has("k") else {}
    options = st.sampled_from([0.5, 0.1]).map(lambda rate: {**k, "dropout": (rate, 0)})
    return options.map(lambda options: AttentionProblem(array, array, array, array, options))


LAWS = (
    Law(dropout, lambda s: s.problems("dropout", numbers=("whole",)), ("dropout",)),
    Law(dropout_share, _many_weights, ("dropout",), examples=2),
    Law(
        dropout_chunks,
        lambda s: s.problems("dropout", "chunk_size", numbers=("whole",)),
        ("dropout", "chunk_size"),
    ),
    Law(
        gradients_dropout,
        lambda s: s.problems("dropout", numbers=("whole",), optional=("chunk_size",)),
        ("dropout",),
        differentiates=True,
    ),
)
