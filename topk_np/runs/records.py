"""The folder of a run: a checkpoint, and a log with one line of JSON for each step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from topk_np._process import UserError, write_whole
from topk_np.runs.settings import RunSettings, Saved
from topk_np.training.adamw import AdamWState, adamw_init
from topk_np.training.params import load_params, read_metadata, save_params
from topk_np.training.trees import Tree

Line = dict[str, Any]
SavedSettings = TypeVar("SavedSettings", bound=Saved)
CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"


class State(NamedTuple):
    """Everything that a step depends on beside the settings."""

    params: Tree
    optimiser: AdamWState
    averaged: Tree | None = None
    """The running mean of the parameters, where one is kept; that is what is tested then."""
    seconds: float = 0.0
    """Time spent on training steps so far."""
    cpu: float = 0.0
    """Time of all cores together, which other programs on the machine do not prolong as much."""

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.optimiser.step

    @classmethod
    def first(cls, params: Tree, *, averaged: bool) -> State:
        """Before the first step."""
        return cls(params, adamw_init(params), params if averaged else None)


def save_state(folder: Path, settings: RunSettings, state: State) -> None:
    """Save a checkpoint; there is a whole one at any time."""
    optimiser = state.optimiser
    tree = {"params": state.params, "mean": optimiser.mean, "square": optimiser.square}
    if state.averaged is not None:
        tree["averaged"] = state.averaged
    about = {
        "settings": settings.dumps(),
        "step": str(state.step),
        "seconds": repr(state.seconds),
        "cpu": repr(state.cpu),
    }
    save_params(folder / CHECKPOINT, tree, metadata=about)


def load_settings(folder: Path, kind: type[SavedSettings]) -> SavedSettings:
    """The settings of that kind at a checkpoint, whose arrays are not read."""
    try:
        return kind.loads(read_metadata(folder / CHECKPOINT)["settings"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(_not_ours(folder)) from error


def load_state(folder: Path, *, like: State) -> State:
    """Load a checkpoint, checked against another state."""
    whole = {"params": like.params, "mean": like.optimiser.mean, "square": like.optimiser.square}
    if like.averaged is not None:
        whole["averaged"] = like.averaged
    tree, about = load_params(folder / CHECKPOINT, like=whole)
    try:
        optimiser = AdamWState(int(about["step"]), tree["mean"], tree["square"])
        times = float(about["seconds"]), float(about["cpu"])
    except (KeyError, ValueError) as error:
        raise UserError(_not_ours(folder)) from error
    return State(tree["params"], optimiser, tree.get("averaged"), *times)


def _not_ours(folder: Path) -> str:
    return f"{folder / CHECKPOINT}: not a checkpoint of this command"


class Log:
    """Lines of JSON, each written as soon as it is known."""

    def __init__(self, folder: Path, *, upto: int = 0) -> None:
        """Go on with the log of a folder after step `upto`; later lines are dropped."""
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
