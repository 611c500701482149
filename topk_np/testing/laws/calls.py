"""Properties of a call: what goes in and comes out beside the numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from array_api_compat import device
from hypothesis.strategies import SearchStrategy

from topk_np._namespace import array_namespace, dtype_name
from topk_np.testing.definition import solve
from topk_np.testing.law import Law
from topk_np.testing.laws.base import Attention, agrees
from topk_np.testing.problems import AttentionProblem
from topk_np.testing.subject import calling, near


def kind(subject: Attention, problem: AttentionProblem) -> None:
    """The output has the shape (..., Q, V), and library, device and dtype of the inputs."""
    query, *_ = subject.put(problem.arrays)
    out = subject.call(problem.arrays, problem.options)
    subject.take("the output", out)
    for what, found, wanted in (
        ("library", array_namespace(out).__name__, array_namespace(query).__name__),
        ("device", str(device(out)), str(device(query))),
        ("dtype", dtype_name(out), dtype_name(query)),
        ("shape", tuple(out.shape), problem.dout.shape),
    ):
        if found != wanted:
            raise AssertionError(f"the output's {what} is {found}, expected {wanted}")


def inputs_unchanged(subject: Attention, problem: AttentionProblem) -> None:
    """The inputs are as they were afterwards."""
    inputs, keywords = subject.put(problem.arrays), subject.keywords(problem.options)
    with calling():
        subject.function(*inputs, **keywords)
    for name, array, before in zip(("query", "key", "value"), inputs, problem.arrays, strict=True):
        if subject.take(name, array).tobytes() != before.tobytes():
            raise AssertionError(f"{name} was written to")


def repeatable(subject: Attention, problem: AttentionProblem) -> None:
    """The same call gives the same bits."""
    one, two = (subject.out_of(problem) for _ in range(2))
    if one.tobytes() != two.tobytes():
        raise AssertionError("a second call gives other bits")


def strides(subject: Attention, problem: AttentionProblem) -> None:
    """Transposed views, whose rows do not lie one after the other, give the same."""
    turned = [np.ascontiguousarray(array.mT) for array in problem.arrays]
    views = [array.swapaxes(-1, -2) for array in subject.put(tuple(turned))]
    keywords, wanted = subject.keywords(problem.options), solve(problem)
    with calling():
        out = subject.function(*views, **keywords)
    found = subject.take("the output", out)
    near("the output", found, wanted.out, problem.tolerance("out"), wanted.clear[..., None])


def broadcasting(subject: Attention, problem: AttentionProblem) -> None:
    """A key and value with a leading axis of length 1 are shared by all heads."""
    agrees(subject, problem)


def degenerate(subject: Attention, problem: AttentionProblem) -> None:
    """No queries give no rows; where there are no keys, rows are zero."""
    agrees(subject, problem, lambda wanted: True)


def chunk_size(subject: Attention, problem: AttentionProblem) -> None:
    """The chunk size changes nothing but rounding."""
    agrees(subject, problem)


def _shared(subject: Attention) -> SearchStrategy[AttentionProblem]:
    def share(problem: AttentionProblem) -> AttentionProblem:
        key, value = (array[..., :1, :, :] for array in (problem.key, problem.value))
        return replace(problem, key=key, value=value)

    several = subject if subject.leading_axes else replace(subject, leading_axes=1)
    return several.problems().map(share)


class _ForAxes(Law[Attention]):
    """A law for who takes leading axes."""

    def lacking(self, subject: Attention) -> str:
        """Say so where it takes none."""
        return "it takes no leading axes" if subject.leading_axes == 0 else ""


LAWS = (
    Law(kind, lambda s: s.problems()),
    Law(inputs_unchanged, lambda s: s.problems()),
    Law(repeatable, lambda s: s.problems()),
    Law(strides, lambda s: s.problems(), may_refuse=True),
    _ForAxes(broadcasting, _shared, may_refuse=True),
    Law(degenerate, lambda s: s.problems(lengths=(0, 1)), may_refuse=True),
    Law(chunk_size, lambda s: s.problems("chunk_size"), ("chunk_size",)),
)
