"""Properties of the options that say what a call may use: memory and threads."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from topk_np.testing.definition import solve
from topk_np.testing.law import Law
from topk_np.testing.laws.base import Attention
from topk_np.testing.laws.values import long_problems
from topk_np.testing.problems import AttentionProblem
from topk_np.testing.subject import near

BUDGET = 2**24  # bytes that every implementation can do with
LENGTH = 1024  # of queries and keys, whose scores alone are more than a sixteenth of that
WORKERS = (1, 2, 3)


def memory_budget(subject: Attention, problem: AttentionProblem) -> None:
    """A smaller memory budget changes nothing but rounding, until it is refused as a ValueError."""
    wanted, tolerance, budget = solve(problem), problem.tolerance("out"), BUDGET
    while budget:
        try:
            out = subject.out_of(problem.given(memory_budget=budget))
        except AssertionError as error:
            if budget < BUDGET and isinstance(error.__cause__, ValueError):
                return
            raise
        near("the output", out, wanted.out, tolerance, wanted.clear[..., None])
        budget //= 2


def memory_peak(subject: Attention, problem: AttentionProblem) -> None:
    """Beyond the output it holds the memory budget at most, however long the arrays are."""
    budget = BUDGET // 16
    problem = problem.given(memory_budget=budget)
    inputs, keywords = subject.put(problem.arrays), subject.keywords(problem.options)
    subject.call(problem.arrays, problem.options)  # what a first call loads is not counted
    tracemalloc.start()
    try:
        out = subject.function(*inputs, **keywords)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > budget + 1.15 * out.nbytes:
        raise AssertionError(
            f"it held {peak} bytes, expected at most {budget} beside {out.nbytes} of output"
        )


def workers(subject: Attention, problem: AttentionProblem) -> None:
    """The number of workers changes no bit."""
    outs = [subject.out_of(problem.given(workers=number)) for number in WORKERS]
    _assert_same("the output", outs)


def gradients_workers(subject: Attention, problem: AttentionProblem) -> None:
    """Nor does it change one of the gradients."""
    grads = [subject.gradients_of(problem.given(workers=number)) for number in WORKERS]
    for name in grads[0]:
        _assert_same(f"the gradient of {name}", [own[name] for own in grads])


def _assert_same(what: str, found: list[np.ndarray]) -> None:
    for number, array in zip(WORKERS, found, strict=True):
        if array.tobytes() != found[0].tobytes():
            raise AssertionError(f"{what} with {number} workers is not that with {WORKERS[0]}")


def _of_length(subject: Attention, length: int) -> SearchStrategy[AttentionProblem]:
    """Problems of one head, so long that it is worth cutting up."""

    def make(seed: int) -> AttentionProblem:
        lead = (1,) * (subject.leading_axes or 0)
        normal = np.random.default_rng(seed).standard_normal((4, *lead, length, 8))
        query, key, value, dout = normal.astype(subject.dtype)
        return AttentionProblem(query, key, value, dout, {"k": 8} if subject.has("k") else {})

    return st.integers(0, 9).map(make)


class _Traced(Law[Attention]):
    """A law for arrays whose memory Python can trace."""

    def lacking(self, subject: Attention) -> str:
        """Say so of other libraries than NumPy."""
        lacking = super().lacking(subject)
        if not lacking and subject.library.name != "numpy":
            return "only NumPy's memory can be traced"
        return lacking


LAWS = (
    Law(memory_budget, long_problems, ("memory_budget",), examples=2),
    _Traced(memory_peak, lambda s: _of_length(s, LENGTH), ("memory_budget",), examples=1),
    Law(workers, lambda s: _of_length(s, 600), ("workers",), examples=2),
    Law(
        gradients_workers,
        lambda s: _of_length(s, 600),
        ("workers",),
        differentiates=True,
        examples=2,
    ),
)
