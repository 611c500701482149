"""Properties of the backward pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import assume

from topk_np.testing.definition import solve
from topk_np.testing.law import Law
from topk_np.testing.laws.base import DEFINED, Attention
from topk_np.testing.laws.masks import (
    HidesKeys,
    with_a_hidden_key,
    with_a_hidden_query,
)
from topk_np.testing.laws.values import long_problems
from topk_np.testing.problems import AttentionProblem
from topk_np.testing.subject import near


def gradients(subject: Attention, problem: AttentionProblem) -> None:
    """Each gradient is the derivative; keys that are not kept get none."""
    gradients_agree(subject, problem)


def gradients_together(subject: Attention, problem: AttentionProblem) -> None:
    """So it is with all options."""
    gradients_agree(subject, problem)


def gradients_long(subject: Attention, problem: AttentionProblem) -> None:
    """So it is for hundreds of queries and keys, beyond the tiles of a kernel."""
    gradients_agree(subject, problem)


def gradients_chunk_size(subject: Attention, problem: AttentionProblem) -> None:
    """So it is whatever the chunk size: all chunks contribute."""
    gradients_agree(subject, problem)


def gradients_t5_bias(subject: Attention, problem: AttentionProblem) -> None:
    """The table of a T5Bias has a gradient too, summed over the pairs that share a bucket."""
    gradients_agree(subject, problem)


def gradients_masked_rows(subject: Attention, problem: AttentionProblem) -> None:
    """A query that may attend to no key gets no gradient, and gives none."""
    gradients_agree(subject, problem, alone=True)


def gradients_masked_nan(subject: Attention, problem: AttentionProblem) -> None:
    """A masked key gets no gradient and gives none, not even if it is NaN."""
    gradients_agree(subject, problem)


def gradients_agree(
    subject: Attention,
    problem: AttentionProblem,
    *,
    alone: bool = False,
    dropped: np.ndarray | None = None,
) -> None:
    """
    Assert that the gradients are those of the definition.

    Queries get no `dout` whose keys rounding may choose differently; there are none that keep no
    key unless they are what the property is about (`alone`).
    """
    wanted = solve(problem, dropped)
    assume(alone or wanted.keeping.all())
    dout = np.where(wanted.clear[..., None], problem.dout, problem.dout.dtype.type(0))
    problem = replace(problem, dout=dout)
    wanted = solve(problem, dropped)
    for name, grad in subject.gradients_of(problem).items():
        expected, tolerance = wanted.grads[name], problem.tolerance(name)
        near(f"the gradient of {name}", grad, expected, tolerance)


LAWS = (
    Law(gradients, lambda s: s.problems(), differentiates=True),
    Law(
        gradients_chunk_size,
        lambda s: s.problems("chunk_size"),
        ("chunk_size",),
        differentiates=True,
    ),
    Law(gradients_t5_bias, lambda s: s.problems("t5_bias"), ("t5_bias",), differentiates=True),
    Law(gradients_masked_rows, with_a_hidden_query, ("mask",), differentiates=True),
    HidesKeys(gradients_masked_nan, with_a_hidden_key, differentiates=True),
    Law(gradients_long, long_problems, differentiates=True, examples=15),
    Law(
        gradients_together,
        lambda s: s.problems(optional=DEFINED),
        differentiates=True,
        may_refuse=True,
    ),
)
