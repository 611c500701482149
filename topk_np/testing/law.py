"""A property before an implementation is known: to whom it applies, and to what problems."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hypothesis.strategies import SearchStrategy

from topk_np._namespace import check_integer
from topk_np.testing.libraries import CannotCheck
from topk_np.testing.report import Property, Report, check_properties
from topk_np.testing.subject import Subject, check_names

Kind = TypeVar("Kind", bound=Subject)


@dataclass(frozen=True)
class Law(Generic[Kind]):
    """A property of implementations of one kind; its name and statement are the function's."""

    holds: Callable[[Kind, Any], None]
    """Of an implementation and a problem; raises an AssertionError where it does not hold."""
    problems: Callable[[Kind], SearchStrategy[Any]]
    needs: tuple[str, ...] = ()
    """The options that it is about."""
    differentiates: bool = False
    """Whether it is about gradients."""
    may_refuse: bool = False
    """Whether an implementation may raise an error instead."""
    examples: int | None = None
    """The most problems that are tried, where a problem takes long."""

    @property
    def name(self) -> str:
        """The name in the report."""
        return self.holds.__name__

    @property
    def statement(self) -> str:
        """The statement that has to hold."""
        return " ".join((self.holds.__doc__ or "").split())

    def lacking(self, subject: Kind) -> str:
        """The options that the property needs and the implementation lacks; empty if none."""
        missing = [name for name in self.needs if not subject.has(name)]
        if missing:
            return f"it has no option {', '.join(missing)}"
        if self.differentiates and not subject.differentiable:
            return "no backward pass is given"
        return ""

    def property_of(self, subject: Kind) -> Property:
        """The property of one implementation."""
        lacking = self.lacking(subject)
        return Property(
            self.name,
            self.statement,
            None if lacking else self.problems(subject),
            lambda problem: self.holds(subject, problem),
            lacking,
            self.may_refuse,
            self.examples,
        )


def put_to_the_test(
    subject: Kind,
    laws: Sequence[Law[Kind]],
    ordinary: Any,
    call: Callable[[Any], Any],
    *,
    only: Collection[str] | None,
    examples: int,
    seed: int,
) -> Report:
    """Check the laws, after a first call of an ordinary problem: what is none fails at once."""
    chosen = _choose(laws, only)
    examples = check_integer("examples", examples, least=1)
    try:
        call(ordinary)
    except AssertionError as error:
        raise CannotCheck(f"called with {ordinary!r}: {error}") from error
    return check_properties([law.property_of(subject) for law in chosen], examples, seed)


def _choose(laws: Sequence[Law[Kind]], only: Collection[str] | None) -> list[Law[Kind]]:
    """Those of the given names, by default all."""
    if only is None:
        return list(laws)
    check_names("only", only, [law.name for law in laws])
    return [law for law in laws if law.name in only]
