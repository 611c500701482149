"""The folder of a run: a checkpoint, and a log with one line of JSON for each step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from topk_np.training.adamw import AdamWState, adamw_init
from topk_np.training.params import load_params, save_params, write_whole
from topk_np.training.settings import Settings, TrainError
from topk_np.training.trees import Tree

Line = dict[str, Any]
CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"
TREES = ("params", "averaged", "mean", "square")  # of a checkpoint


class State(NamedTuple):
    """Everything that a step depends on beside the settings."""

    params: Tree
    averaged: Tree
    """The running mean of the parameters, which is what is tested."""
    optimiser: AdamWState
    seconds: float = 0.0
    """Time spent on training steps so far."""
    cpu: float = 0.0
    """Time of all cores together, which other programs on the machine do not prolong as much."""

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.optimiser.step

    @classmethod
    def first(cls, params: Tree) -> State:
        """Before the first step."""
        return cls(params, params, adamw_init(params))


def save_state(folder: Path, settings: Settings, state: State) -> None:
    """Save a checkpoint; there is a whole one at any time."""
    trees = state.params, state.averaged, state.optimiser.mean, state.optimiser.square
    tree = dict(zip(TREES, trees, strict=True))
    about = {
        "settings": settings.dumps(),
        "step": str(state.step),
        "seconds": repr(state.seconds),
        "cpu": repr(state.cpu),
    }
    save_params(folder / CHECKPOINT, tree, metadata=about)


def load_state(folder: Path, like: Tree | None = None) -> tuple[Settings, State]:
    """Load a checkpoint, whose parameters are checked against others where given."""
    whole = None if like is None else dict.fromkeys(TREES, like)
    tree, about = load_params(folder / CHECKPOINT, like=whole)
    try:
        settings = Settings.loads(about["settings"])
        optimiser = AdamWState(int(about["step"]), tree["mean"], tree["square"])
        times = float(about["seconds"]), float(about["cpu"])
        state = State(tree["params"], tree["averaged"], optimiser, *times)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainError(f"{folder / CHECKPOINT}: not a checkpoint of this command") from error
    return settings, state


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
