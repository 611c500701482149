"""An implementation of attention, and what most of its properties come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis.strategies import SearchStrategy

from topk_np.testing.definition import Solution, solve
from topk_np.testing.problems import AttentionProblem
from topk_np.testing.strategies import FORMS, OPTIONS, attention_problems
from topk_np.testing.subject import Subject, near

Rows = np.ndarray | bool

DEFINED = tuple(name for name in (*OPTIONS, *FORMS) if name != "dropout")
"""The options that leave no doubt about the result."""


@dataclass(frozen=True)
class Attention(Subject):
    """An implementation of attention."""

    leading_axes: int | None = None

    KNOWN = (*OPTIONS, *FORMS, "return_lse", "memory_budget", "workers")

    def problems(
        self,
        *required: str,
        optional: tuple[str, ...] = (),
        lengths: tuple[int, int] | None = None,
        numbers: tuple[str, ...] = ("whole", "normal"),
    ) -> SearchStrategy[AttentionProblem]:
        """Problems with some options, and others where it has them."""
        least, most = lengths or (1, self.max_length)
        return attention_problems(
            dtype=self.dtype,
            min_length=least,
            max_length=most,
            options=[*required, *(o for o in ("k", *optional) if self.has(o))],
            required=required,
            leading_axes=self.leading_axes,
            numbers=numbers,
        )

    def out_of(self, problem: AttentionProblem) -> np.ndarray:
        """The output for a problem."""
        return self.out(problem.arrays, problem.options)

    def gradients_of(self, problem: AttentionProblem) -> dict[str, np.ndarray]:
        """The gradients for a problem, by name."""
        grads = self.gradients(problem.arrays, problem.options, problem.dout)
        named = dict(zip(("query", "key", "value"), grads, strict=False))
        if getattr(grads, "bias", None) is not None:
            named["bias"] = grads.bias
        return {name: self.take(f"the gradient of {name}", g) for name, g in named.items()}


def agrees(
    subject: Attention, problem: AttentionProblem, only: Callable[[Solution], Rows] | None = None
) -> None:
    """
    Assert that the output is that of the definition.

    Queries whose keys rounding may choose differently are left out, and without `only`, which says
    which ones a property is about, those that keep no key.
    """
    wanted = solve(problem)
    rows = wanted.clear & (wanted.keeping if only is None else only(wanted))
    tolerance = problem.tolerance("out")
    near("the output", subject.out_of(problem), wanted.out, tolerance, rows[..., None])
