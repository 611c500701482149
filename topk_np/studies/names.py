"""Experiments by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERIMENTS: dict[str, str] = {
    "perplexity": "how well SmolLM2 reads with top-k attention and feed-forward layers",
    "passkey": "whether it finds a pass key that is hidden in a text",
    "retrieval": "whether MiniLM finds the first half of a review from its second half",
    "repair": "how much of what top-k costs SmolLM2 a few dozen steps of training repair",
    "relu": "how few feed-forward units a ReLU transformer trained from scratch needs",
}
"""What each module of this package measures, in a line."""

Setting = dict[str, Any]
"""What distinguishes a point from the others: JSON values, such as ``{"attention_k": 64}``."""
Result = dict[str, Any]
"""What was measured there: JSON values."""
Tick = Callable[[], object]
"""Called as work goes on: see `Prepared.steps`."""


@dataclass(frozen=True)
class Point:
    """What was measured with one setting."""

    setting: Setting
    result: Result
    cpu_seconds: float
    """Of all cores together, which other programs do not prolong as much as the time."""
    machine: int
    """The place of the machine in the record's list."""


@dataclass(frozen=True)
class Prepared:
    """An experiment that is ready to be run."""

    about: dict[str, Any]
    """What all points have in common: models, texts and sizes, as JSON values."""
    settings: Sequence[Setting]
    """What to measure, in this order."""
    measure: Callable[[Setting, Tick], Result]
    """Measure with one setting."""
    steps: Callable[[Setting], int]
    """How often `measure` ticks."""


class Experiment(Protocol):
    """What a module of an experiment has."""

    def prepare(self, model: str | None, /) -> Prepared:
        """Load what is needed, with another model than the packaged one if asked for."""
        ...

    def label(self, setting: Setting, /) -> str:
        """A setting in words, which no other has."""
        ...

    def table(self, points: Sequence[Point], /) -> str:
        """What was found as tables in Markdown; some points may be missing."""
        ...

    def draw(self, points: Sequence[Point], /) -> dict[str, Figure]:
        """What was found as plots by name, of those for which there are enough points."""
        ...


def find(name: str, /) -> Experiment:
    """The experiment of a name."""
    return cast(Experiment, importlib.import_module(f"topk_np.studies.{name}"))
