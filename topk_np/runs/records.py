"""The folder of a run: its settings and state in a checkpoint, and a log with a line for each step.

A checkpoint is a safetensors file that is whole at any time. The log has a line of JSON for each
step and for each evaluation, written as soon as it is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from topk_np._process import UserError, write_whole
from topk_np.training.adamw import AdamWState, adamw_init
from topk_np.training.params import load_params, read_metadata, save_params
from topk_np.training.trees import Tree

Line = dict[str, Any]
Chosen = TypeVar("Chosen", bound="RunSettings")
CHECKPOINT, LOG, RESULTS = "checkpoint.safetensors", "log.jsonl", "results.json"


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run, except its length: two runs that share them give the same bits."""

    CLIP = 1.0
    """The largest norm of all gradients together."""
    WARMUP = 0
    """Steps in which the learning rate rises; it is constant then, so any run can be prolonged."""
    WEIGHT_DECAY = 0.0

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        raise NotImplementedError

    @property
    def learning_rate(self) -> float:
        """The rate of AdamW, once warm."""
        raise NotImplementedError

    def dumps(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls: type[Chosen], text: str) -> Chosen:
        """Return the settings in JSON, whose lists were tuples."""
        found = json.loads(text)
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in found.items()})

    def differences(self, other: RunSettings) -> list[str]:
        """Names of the settings that differ."""
        return [
            field.name
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


class State(NamedTuple):
    """Everything that a step depends on, except the settings."""

    params: Tree
    optimiser: AdamWState
    averaged: Tree | None = None
    """The running mean of the parameters, which is tested in their place; None if none is kept."""
    seconds: float = 0.0
    """Time spent on training steps so far."""
    cpu: float = 0.0
    """CPU time of all cores, which other programs on the machine prolong less."""

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return self.optimiser.step

    @classmethod
    def first(cls, params: Tree, *, averaged: bool) -> State:
        """The state before the first step."""
        return cls(params, adamw_init(params), params if averaged else None)


def choose_folder(first: Path, *, out: Path | None, resume: bool) -> Path:
    """The folder of a run: the one asked for, or a new one like `first`, or the newest such."""
    if out is not None:
        held = (out / CHECKPOINT).exists()
        if resume and not held:
            raise UserError(f"--resume: there is no {CHECKPOINT} in {out}")
        if held and not resume:
            raise UserError(f"--out {out} holds a run: go on with --resume, or name another folder")
        return out
    folder, newest, number = first, None, 1
    while (folder / CHECKPOINT).exists():
        number += 1
        folder, newest = first.with_name(f"{first.name}-{number}"), folder
    if not resume:
        return folder
    if newest is None:
        raise UserError(f"--resume: there is no {CHECKPOINT} in {first}; name a folder with --out")
    return newest


def save_state(folder: Path, settings: RunSettings, state: State) -> None:
    """Save a checkpoint in place of the one before."""
    about = {
        "settings": settings.dumps(),
        "step": str(state.step),
        "seconds": repr(state.seconds),
        "cpu": repr(state.cpu),
    }
    save_params(folder / CHECKPOINT, _tree(state), metadata=about)


def load_settings(folder: Path, kind: type[Chosen]) -> Chosen:
    """Load the settings of a checkpoint, whose arrays are not read."""
    try:
        return kind.loads(read_metadata(folder / CHECKPOINT)["settings"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(_not_ours(folder)) from error


def load_state(folder: Path, *, like: State) -> State:
    """Load a checkpoint, checked against another state."""
    tree, about = load_params(folder / CHECKPOINT, like=_tree(like))
    try:
        optimiser = AdamWState(int(about["step"]), tree["mean"], tree["square"])
        times = float(about["seconds"]), float(about["cpu"])
    except (KeyError, ValueError) as error:
        raise UserError(_not_ours(folder)) from error
    return State(tree["params"], optimiser, tree.get("averaged"), *times)


def resumed(folder: Path, settings: RunSettings, first: State) -> State:
    """The state at the checkpoint of a run with the same settings, which began like `first`."""
    before = load_settings(folder, type(settings))
    different = settings.differences(before)
    if different:
        wanted = ", ".join(_option(name, getattr(before, name)) for name in different)
        raise UserError(f"--resume: the run in {folder} has {wanted}")
    return load_state(folder, like=first)


def _tree(state: State) -> Tree:
    """The arrays of a state, as a checkpoint names them."""
    optimiser = state.optimiser
    tree = {"params": state.params, "mean": optimiser.mean, "square": optimiser.square}
    return tree if state.averaged is None else {**tree, "averaged": state.averaged}


def _option(name: str, value: Any) -> str:
    """A setting as an option of the command line."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False or value == ():
        return f"no {option}"
    if value is True:
        return option
    return f"{option} {' '.join(value) if isinstance(value, tuple) else value}"


def _not_ours(folder: Path) -> str:
    return f"{folder / CHECKPOINT}: not a checkpoint of this command"


class Log:
    """The log of a folder, which is added to."""

    def __init__(self, folder: Path, *, upto: int = 0) -> None:
        """Keep the lines up to a step, and drop those after it."""
        path = folder / LOG
        kept = [line for line in read_log(folder) if line["step"] <= upto] if upto else []
        write_whole(path, "".join(map(_dumped, kept)).encode())
        self._file = path.open("a")

    def write(self, **line: Any) -> None:
        """Add a line."""
        self._file.write(_dumped(line))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(folder: Path) -> Iterator[Line]:
    """The lines of a folder's log; one that was cut off by a crash is left out."""
    for text in (folder / LOG).read_text().splitlines():
        try:
            yield json.loads(text)
        except ValueError:
            return


def _dumped(line: Line) -> str:
    return json.dumps(line) + "\n"
