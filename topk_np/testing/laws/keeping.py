"""Properties of which keys are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis.strategies import SearchStrategy

from topk_np.testing.definition import solve
from topk_np.testing.law import Law
from topk_np.testing.laws.base import Attention, agrees
from topk_np.testing.problems import AttentionProblem


def all_kept(subject: Attention, problem: AttentionProblem) -> None:
    """The output is that of dense attention where k is the number of keys or more."""
    agrees(subject, problem.given(k=problem.keys))
    agrees(subject, problem.given(k=problem.keys + 3))


def exactly_k(subject: Attention, problem: AttentionProblem) -> None:
    """A query keeps exactly k keys, also where more of them tie for the last place."""
    found, wanted = _kept_by(subject, problem).sum(axis=-1), solve(problem).kept.sum(axis=-1)
    wrong = np.argwhere(found != wanted)
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise AssertionError(f"query {at} keeps {found[at]} keys, not {wanted[at]}")


def ties(subject: Attention, problem: AttentionProblem) -> None:
    """Among equal scores the key of the lower index is kept."""
    found, wanted = _kept_by(subject, problem), solve(problem).kept
    wrong = np.argwhere((found != wanted).any(axis=-1))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        kept, expected = (np.flatnonzero(pairs[at]).tolist() for pairs in (found, wanted))
        raise AssertionError(f"query {at} keeps the keys {kept}, not {expected}")


def mass(subject: Attention, problem: AttentionProblem) -> None:
    """With p a query keeps the fewest best keys that hold this share of the dense weights."""
    agrees(subject, problem)


def always_keep(subject: Attention, problem: AttentionProblem) -> None:
    """Sinks and the nearest keys are kept beside the k best of the others."""
    agrees(subject, problem)


def _kept_by(subject: Attention, problem: AttentionProblem) -> np.ndarray:
    """Boolean (..., Q, N): the keys whose values reach a query's output."""
    identity = np.eye(problem.keys, dtype=problem.value.dtype)
    value = np.array(np.broadcast_to(identity, (*problem.lead, *identity.shape)))
    out = subject.out_of(replace(problem, value=value))
    expected = (*problem.lead, problem.queries, problem.keys)
    if out.shape != expected:
        raise AssertionError(f"the output has shape {out.shape}, expected {expected}")
    kept: np.ndarray = out != 0
    return kept


def _with_ties(subject: Attention) -> SearchStrategy[AttentionProblem]:
    return subject.problems("k", numbers=("whole",))


LAWS = (
    Law(all_kept, lambda s: s.problems("k"), ("k",)),
    Law(exactly_k, _with_ties, ("k",)),
    Law(ties, _with_ties, ("k",)),
    Law(mass, lambda s: s.problems("p", optional=("max_k", "always_keep")), ("p",)),
    Law(
        always_keep,
        lambda s: s.problems("k", "always_keep", optional=("query_offset",)),
        ("k", "always_keep"),
    ),
)
