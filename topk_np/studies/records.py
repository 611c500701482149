"""The file of an experiment, which is whole at any time: each point is added as it is measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from topk_np._process import Machine, UserError, write_whole
from topk_np.studies.names import Point, Result, Setting


@dataclass(frozen=True)
class Record:
    """What an experiment measured so far."""

    experiment: str
    about: dict[str, Any]
    machines: Sequence[Machine] = ()
    """What points were measured on, each once."""
    points: Sequence[Point] = ()

    def has(self, setting: Setting, /) -> bool:
        """Whether there is a point with the setting."""
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
        If it is not one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["points"] = [Point(**point) for point in found["points"]]
        return Record(**found)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a file of this command: {error}") from error


def open_record(path: Path, experiment: str, about: dict[str, Any], /) -> Record:
    """
    The record in a file, to go on with, or a new one where there is none.

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
