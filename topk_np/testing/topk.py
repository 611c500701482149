"""`check_topk`: properties of the selection of the k largest."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from topk_np.testing.law import Law, put_to_the_test
from topk_np.testing.libraries import Library
from topk_np.testing.problems import Printed
from topk_np.testing.report import Report
from topk_np.testing.subject import Implementation, Subject, calling


@dataclass(frozen=True, repr=False)
class TopKProblem(Printed):
    """The k largest of each row of an array."""

    x: np.ndarray
    """(..., N)"""
    k: int

    @property
    def order(self) -> np.ndarray:
        """(..., k): where the largest are, largest first, NaN before all, the lower index first."""
        nan = np.isnan(self.x)
        return np.lexsort((-np.where(nan, 0, self.x), ~nan), axis=-1)[..., : self.k]


@dataclass(frozen=True)
class TopK(Subject):
    """An implementation of the selection."""

    KNOWN = ("axis",)

    def problems(self, *special: float) -> SearchStrategy[TopKProblem]:
        """Problems with many equal numbers, and the special ones."""
        elements = st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5, -3.0, *special])
        # By columns, so that any of them can be left out.
        columns = st.lists(st.tuples(elements, elements), min_size=1, max_size=self.max_length)
        leads = st.sampled_from([(), (1,), (2,), (1, 2)])

        def problem(lead: tuple[int, ...], drawn: list[tuple[float, float]], k: int) -> TopKProblem:
            rows = np.array(drawn, self.dtype).T[: math.prod(lead)]
            return TopKProblem(rows.reshape(*lead, len(drawn)), min(k, len(drawn)))

        return st.builds(problem, leads, columns, st.integers(1, self.max_length))

    def pair(self, problem: TopKProblem, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Values and indices."""
        (x,) = self.put((problem.x,))
        with calling():
            pair = self.function(x, problem.k, **options)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise AssertionError(f"no pair (values, indices) comes back but {type(pair).__name__}")
        values, indices = (
            self.take(name, a) for name, a in zip(("values", "indices"), pair, strict=True)
        )
        if indices.dtype.kind not in "iu":
            raise AssertionError(f"indices have dtype {indices.dtype}, expected integers")
        return values, indices


def values(subject: TopK, problem: TopKProblem) -> None:
    """The k largest come back, the largest first."""
    found, _ = subject.pair(problem)
    _same("values", found, np.take_along_axis(problem.x, problem.order, axis=-1))


def indices(subject: TopK, problem: TopKProblem) -> None:
    """The indices are different ones, and say where each value is."""
    found, at = subject.pair(problem)
    if at.shape != problem.order.shape or np.any((at < 0) | (at >= problem.x.shape[-1])):
        raise AssertionError(f"indices {at.tolist()} do not fit shape {problem.x.shape}")
    if np.any(np.diff(np.sort(at, axis=-1), axis=-1) == 0):
        raise AssertionError(f"indices {at.tolist()} name an element twice")
    _same("values", found, np.take_along_axis(problem.x, at, axis=-1))


def ties(subject: TopK, problem: TopKProblem) -> None:
    """Among equal numbers the lower index comes first."""
    _same("indices", subject.pair(problem)[1], problem.order)


def infinities(subject: TopK, problem: TopKProblem) -> None:
    """Infinities are numbers like others."""
    values(subject, problem)


def nan_first(subject: TopK, problem: TopKProblem) -> None:
    """NaN is larger than all numbers, so that it is not lost."""
    values(subject, problem)


def beyond_all(subject: TopK, problem: TopKProblem) -> None:
    """A k beyond all elements gives all of them."""
    found, _ = subject.pair(TopKProblem(problem.x, problem.x.shape[-1] + 2))
    _same("values", found, -np.sort(-problem.x, axis=-1))


def long(subject: TopK, problem: TopKProblem) -> None:
    """So it is for thousands of numbers."""
    values(subject, problem)
    indices(subject, problem)


def axis(subject: TopK, problem: TopKProblem) -> None:
    """The axis may be another than the last."""
    x = np.stack([problem.x, problem.x], axis=-1)
    found, _ = subject.pair(TopKProblem(x, problem.k), axis=-2)
    wanted = np.take_along_axis(problem.x, problem.order, axis=-1)
    _same("values", found, np.stack([wanted, wanted], axis=-1))


def inputs_unchanged(subject: TopK, problem: TopKProblem) -> None:
    """The input is as it was afterwards."""
    (x,) = subject.put((problem.x,))
    with calling():
        subject.function(x, problem.k)
    _same("the input", subject.take("the input", x), problem.x)


def _same(what: str, found: np.ndarray, wanted: np.ndarray) -> None:
    if found.shape != wanted.shape:
        raise AssertionError(f"{what} have shape {found.shape}, expected {wanted.shape}")
    if what == "values" and found.dtype != wanted.dtype:
        raise AssertionError(f"{what} have dtype {found.dtype}, expected {wanted.dtype}")
    if not np.array_equal(found, wanted, equal_nan=found.dtype.kind == "f"):
        raise AssertionError(f"{what} are {found.tolist()}, expected {wanted.tolist()}")


@st.composite
def _long(draw: st.DrawFn, subject: TopK) -> TopKProblem:
    length = draw(st.integers(1, 5000))
    x = np.random.default_rng(draw(st.integers(0, 9))).standard_normal((2, length))
    return TopKProblem(x.astype(subject.dtype), draw(st.integers(1, length)))


LAWS: tuple[Law[TopK], ...] = (
    Law(values, lambda s: s.problems()),
    Law(indices, lambda s: s.problems()),
    Law(ties, lambda s: s.problems()),
    Law(infinities, lambda s: s.problems(math.inf, -math.inf)),
    Law(nan_first, lambda s: s.problems(math.nan, math.inf)),
    Law(beyond_all, lambda s: s.problems(), may_refuse=True),
    Law(long, _long, examples=10),
    Law(axis, lambda s: s.problems(), ("axis",)),
    Law(inputs_unchanged, lambda s: s.problems()),
)


def check_topk(
    implementation: Implementation,
    /,
    *,
    options: Collection[str] = (),
    library: str | Library = "numpy",
    dtype: str = "float64",
    max_length: int = 8,
    examples: int = 50,
    seed: int = 0,
    only: Collection[str] | None = None,
) -> Report:
    """
    Put an implementation of top-k to the test, property by property.

    Parameters
    ----------
    implementation : callable
        ``f(x, k) -> (values, indices)`` of the last axis of x (..., N), largest first, such as
        `topk_np.top_k`, `torch.topk` or `jax.lax.top_k`.
    options : collection of str, default ()
        "axis", to be tried where the signature does not name it.
    library, dtype, max_length, examples, seed, only
        As for `check_attention`.

    Returns
    -------
    Report
        ``report.passed`` says whether no property failed; printed it says everything.

    Raises
    ------
    CannotCheck
        If the library is not installed or lacks the dtype, or the first, ordinary call raises.
    TypeError, ValueError
        If an argument is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.testing import check_topk
    >>> def topk(x, k):
    ...     order = np.argsort(x, axis=-1)[..., ::-1][..., :k]  # the higher index first
    ...     return np.take_along_axis(x, order, axis=-1), order
    >>> report = check_topk(topk, only=["values", "ties"])
    >>> report.names("failed")
    ['ties']
    >>> report["ties"].example
    TopKProblem(x=np.array([0.0, 0.0], 'float64'), k=1)
    """
    subject = TopK.of(implementation, options, library, dtype, max_length)
    ordinary = TopKProblem(np.ones((2, 3), dtype), 1)
    return put_to_the_test(
        subject, LAWS, ordinary, subject.pair, only=only, examples=examples, seed=seed
    )
