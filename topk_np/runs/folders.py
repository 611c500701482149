"""The folder of a run: which one it is, and how a run goes on from the checkpoint there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topk_np._process import UserError
from topk_np.runs.records import CHECKPOINT, SavedSettings, State, load_settings, load_state


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


def resumed(folder: Path, settings: SavedSettings, first: State) -> State:
    """The state at the checkpoint of a run with the same settings, which began like `first`."""
    before = load_settings(folder, type(settings))
    different = settings.differences(before)
    if different:
        wanted = ", ".join(_option(name, getattr(before, name)) for name in different)
        raise UserError(f"--resume: the run in {folder} has {wanted}")
    return load_state(folder, like=first)


def _option(name: str, value: Any) -> str:
    """A setting as the command line has it."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False or value == ():
        return f"no {option}"
    if value is True:
        return option
    return f"{option} {' '.join(value) if isinstance(value, tuple) else value}"
