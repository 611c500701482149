"""Properties of an implementation, put to the test one by one, and the report on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import Flaky, Unsatisfiable
from hypothesis.strategies import SearchStrategy

Status = Literal["passed", "failed", "not applicable"]


class Raised(AssertionError):
    """The implementation raised an error of its own."""


@dataclass(frozen=True)
class Property:
    """Something that has to hold for all problems of a kind."""

    name: str
    statement: str
    problems: SearchStrategy[Any] | None
    """None where it does not apply."""
    holds: Callable[[Any], None]
    """Raises an AssertionError where it does not hold."""
    lacking: str = ""
    """Why it does not apply; empty where it does."""
    may_refuse: bool = False
    """Whether an implementation may raise an error instead."""
    examples: int | None = None
    """The most problems that are tried, where a problem takes long."""


@dataclass(frozen=True)
class Result:
    """The outcome of a property."""

    name: str
    status: Status
    statement: str
    """What has to hold."""
    message: str = ""
    """What was found wrong, or why the property does not apply."""
    example: Any = field(default=None, repr=False)
    """The smallest problem found for which it does not hold."""

    def __str__(self) -> str:
        """The verdict, what has to hold, what was found, and for which problem."""
        text = f"{self.status.upper() if self.status == 'failed' else self.status:15}{self.name}: "
        text += self.statement
        if self.message:
            text += f"\n{'':15}{self.message}"
        if self.example is not None:
            text += f"\n{'':15}{self.example!r}"
        return text


@dataclass(frozen=True)
class Report:
    """The outcome of all properties; printed, a paragraph for each and a line at the end."""

    results: tuple[Result, ...]

    def __getitem__(self, name: str) -> Result:
        """The result of the property of that name."""
        return next(result for result in self.results if result.name == name)

    def names(self, status: Status) -> list[str]:
        """The properties that passed, failed, or were not applicable."""
        return [result.name for result in self.results if result.status == status]

    @property
    def passed(self) -> bool:
        """True if no property failed."""
        return not self.names("failed")

    def __str__(self) -> str:
        """All results and a line that sums them up."""
        passed, failed, others = (
            self.names(status) for status in ("passed", "failed", "not applicable")
        )
        counts = f"{len(passed)} passed, {len(failed)} failed, {len(others)} not applicable"
        verdict = f"FAILED: {', '.join(failed)}" if failed else "PASSED"
        return "\n".join([*map(str, self.results), "", f"{verdict} ({counts})"])


def check_properties(properties: Sequence[Property], examples: int, number: int) -> Report:
    """Try so many problems on each property, drawn from a seed."""
    return Report(tuple(_result(prop, examples, number) for prop in properties))


def _result(prop: Property, examples: int, number: int) -> Result:
    if prop.problems is None:
        return Result(prop.name, "not applicable", prop.statement, prop.lacking)
    smallest: Any = None
    refusal = ""

    @seed(number)
    @settings(
        max_examples=examples if prop.examples is None else min(examples, prop.examples),
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(prop.problems)
    def test(problem: Any) -> None:
        nonlocal smallest, refusal
        smallest = problem  # Hypothesis runs the smallest failing example last
        try:
            prop.holds(problem)
        except Raised as error:
            if not prop.may_refuse:
                raise
            refusal = str(error)

    try:
        test()
    except AssertionError as error:
        return Result(prop.name, "failed", prop.statement, str(error), smallest)
    except Flaky:
        message = "it does not do the same twice: what failed once passed the next time"
        return Result(prop.name, "failed", prop.statement, message, smallest)
    except Unsatisfiable:
        return Result(prop.name, "not applicable", prop.statement, "no such problem was drawn")
    if refusal:
        return Result(prop.name, "not applicable", prop.statement, refusal)
    return Result(prop.name, "passed", prop.statement)
