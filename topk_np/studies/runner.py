"""
The runner of studies, the program ``python -m topk_np experiment``.

A study measures with one setting after the other. Each result is a point in a JSON file, which is
whole at any time; a point that is there is not measured again.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from topk_np._process import (
    Machine,
    UserError,
    cpu_seconds,
    describe_machine,
    make_folder,
    write_whole,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERIMENTS: dict[str, str] = {
    "perplexity": "how well SmolLM2 reads with top-k attention and feed-forward layers",
    "passkey": "whether it finds a pass key that is hidden in a text",
    "retrieval": "whether MiniLM finds the first half of a review from its second half",
    "repair": "how much of what top-k costs SmolLM2 a few dozen steps of training repair",
    "relu": "how few feed-forward units a ReLU transformer trained from scratch needs",
}
"""The question of each study, by the name of its module in this package."""

Setting = dict[str, Any]
"""JSON values that distinguish a point from the others, such as ``{"attention_k": 64}``."""
Result = dict[str, Any]
"""Measurements with a setting: JSON values."""
Tick = Callable[[], object]
"""Called as work goes on: see `Prepared.steps`."""


@dataclass(frozen=True)
class Point:
    """The result of one setting."""

    setting: Setting
    result: Result
    cpu_seconds: float
    """CPU time of all cores, which other programs prolong less than the time that passes."""
    machine: int
    """The place of the machine in the record's list."""


@dataclass(frozen=True)
class Prepared:
    """A study that is ready to be run."""

    about: dict[str, Any]
    """Facts that all points share: models, texts and sizes, as JSON values."""
    settings: Sequence[Setting]
    """The settings to measure with, in this order."""
    measure: Callable[[Setting, Tick], Result]
    """Measure with one setting."""
    steps: Callable[[Setting], int]
    """The number of times that `measure` ticks."""


class Study(Protocol):
    """The functions of a study's module."""

    def prepare(self, model: str | None, /) -> Prepared:
        """Load what is needed, with another model than the packaged one if asked for."""
        ...

    def label(self, setting: Setting, /) -> str:
        """A setting in words, which no other has."""
        ...

    def table(self, points: Sequence[Point], /) -> str:
        """Markdown tables of the points; some may be missing."""
        ...

    def draw(self, points: Sequence[Point], /) -> dict[str, Figure]:
        """Plots of the points by name, those for which there are enough points."""
        ...


def dense_result(points: Sequence[Point], /) -> Result | None:
    """The result of the dense model, whose setting is empty, if it is there."""
    return next((point.result for point in points if not point.setting), None)


def find(name: str, /) -> Study:
    """The study of a name."""
    return cast(Study, importlib.import_module(f"topk_np.studies.{name}"))


def run(
    name: str,
    /,
    *,
    model: str | None = None,
    only: str = "",
    show: bool = False,
    out: Path,
    plots: Path | None = None,
) -> Record:
    """
    Measure what is missing, print the tables, and save them, the plots and the points.

    Parameters
    ----------
    name : str
        One of `EXPERIMENTS`.
    model : str, optional
        A model to measure instead of the packaged one: its name or path.
    only : str
        Measure the settings alone whose words hold this.
    show : bool
        Measure nothing: make tables and plots of the points there are.
    out, plots : Path
        Where ``NAME.json`` and ``NAME.md`` go, and the plots; `plots` is `out` by default.

    Returns
    -------
    Record
        With the points of this run and of those before.

    Raises
    ------
    UserError
        With a message of one line.
    KeyboardInterrupt
        After Ctrl-C; the points that were measured are in the file.
    """
    import matplotlib as mpl
    import tqdm  # noqa: F401  not only when all is loaded

    from topk_np._plots import STYLE

    study, path = find(name), out / f"{name}.json"
    plots = out if plots is None else plots
    if show:
        record = _shown(name, path)
    else:
        prepared = study.prepare(model)
        record = open_record(path, name, prepared.about)
        make_folder("--out", out)
        record = _measured(study, prepared, record, path, only)

    tables = study.table(record.points)
    print(tables)
    write_whole(out / f"{name}.md", (tables + "\n").encode())
    make_folder("--plots", plots)
    with mpl.rc_context(STYLE):
        for stem, figure in study.draw(record.points).items():
            figure.savefig(plots / f"{stem}.png", dpi=130)
    print(f"\nPoints and tables: {out}; plots: {plots}")
    return record


def _shown(name: str, path: Path) -> Record:
    """The record in a file, which must have points."""
    if not path.exists():
        raise UserError(f"--show: there is no {path}")
    record = load_record(path)
    if record.experiment != name or not record.points:
        raise UserError(f"--show: {path} has no points of {name}")
    return record


def _measured(study: Study, prepared: Prepared, record: Record, path: Path, only: str) -> Record:
    """The record with what it lacked; the file has each point as soon as it is known."""
    wanted = [setting for setting in prepared.settings if only in study.label(setting)]
    if not wanted:
        raise UserError(f"--only {only}: no setting's words hold this")
    missing = [setting for setting in wanted if not record.has(setting)]
    machine, left = describe_machine(), replace(prepared, settings=missing)
    for setting, result, seconds in measure(left, record.experiment, study.label):
        record = record.with_point(setting, result, seconds, machine)
        record = record.in_order(prepared.settings)
        record.save(path)
    return record


def measure(
    prepared: Prepared, name: str, label: Callable[[Setting], str], /, *, unit: str = "it"
) -> Iterator[tuple[Setting, Result, float]]:
    """Measure with each setting, with a bar; give each setting, its result and its CPU seconds."""
    from tqdm import tqdm

    total = sum(map(prepared.steps, prepared.settings))
    with tqdm(total=total, desc=name, unit=unit, file=sys.stderr, leave=False) as bar:
        for setting in prepared.settings:
            bar.set_postfix_str(label(setting))
            start = cpu_seconds()
            result = prepared.measure(setting, bar.update)
            yield setting, result, cpu_seconds() - start


@dataclass(frozen=True)
class Record:
    """The points of a study measured so far, as they are in its file."""

    experiment: str
    about: dict[str, Any]
    machines: Sequence[Machine] = ()
    """The machines that points were measured on, each once."""
    points: Sequence[Point] = ()

    def has(self, setting: Setting, /) -> bool:
        """Look for a point with the setting."""
        return any(point.setting == setting for point in self.points)

    def with_point(
        self, setting: Setting, result: Result, cpu_seconds: float, machine: Machine, /
    ) -> Record:
        """The record with one more point, measured on a machine."""
        machines = [*self.machines]
        same = [_timeless(known) == _timeless(machine) for known in machines]
        if True not in same:
            machines.append(machine)
        place = same.index(True) if True in same else len(same)
        point = Point(setting, result, round(cpu_seconds, 2), place)
        return replace(self, machines=machines, points=[*self.points, point])

    def in_order(self, settings: Sequence[Setting], /) -> Record:
        """The record with its points in the order of the settings, others last."""
        places = {json.dumps(setting): place for place, setting in enumerate(settings)}
        last = len(places)
        points = sorted(self.points, key=lambda p: places.get(json.dumps(p.setting), last))
        return replace(self, points=points)

    def save(self, path: Path, /) -> None:
        """Write the file, at once or not at all: a line for each point."""
        parts = {"experiment": self.experiment, "about": self.about}
        head = "".join(
            f" {json.dumps(name)}: {json.dumps(part)},\n" for name, part in parts.items()
        )
        machines, points = (
            ",\n".join(f"  {json.dumps(line)}" for line in lines)
            for lines in (self.machines, [asdict(point) for point in self.points])
        )
        text = f'{{\n{head} "machines": [\n{machines}\n ],\n "points": [\n{points}\n ]\n}}\n'
        write_whole(path, text.encode())


def load_record(path: Path, /) -> Record:
    """
    Read a file that `Record.save` wrote.

    Raises
    ------
    UserError
        If it is another file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["points"] = [Point(**point) for point in found["points"]]
        return Record(**found)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a file of this command: {error}") from error


def open_record(path: Path, experiment: str, about: dict[str, Any], /) -> Record:
    """
    Open the record in a file, to go on with, or a new one where there is none.

    Raises
    ------
    UserError
        If the points there were measured with something else.
    """
    about = json.loads(json.dumps(about))
    if not path.exists():
        return Record(experiment, about)
    record = load_record(path)
    for name in sorted(about.keys() | record.about.keys()):
        before, now = record.about.get(name), about.get(name)
        if before != now:
            raise UserError(
                f"{path} holds points with {name} {before!r:.60}, this run has {now!r:.60}: name "
                "another folder with --out, or remove the file"
            )
    return record


def _timeless(machine: Machine) -> Machine:
    return {name: value for name, value in machine.items() if name != "date"}
