"""The report on what became of the mutants."""

from __future__ import annotations

import difflib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import WorkItem, WorkResult


def changed(code: str, mutated: str) -> str:
    """The lines that a mutation takes away and puts in, as a diff has them."""
    lines = difflib.unified_diff(code.splitlines(), mutated.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def survivors(session: WorkDB) -> list[WorkItem]:
    """The mutants that survived."""
    return [item for item, result in session.completed_work_items if not result.is_killed]


def write_report(session: WorkDB, path: Path) -> None:
    """Write every mutant and whether it was killed, in the order of the code."""
    mutants: list[dict[str, Any]] = [
        {
            **_change(item, result),
            "line": item.mutations[0].start_pos[0],
            "killed": result.is_killed,
        }
        for item, result in session.completed_work_items
    ]
    mutants.sort(key=lambda mutant: (mutant["file"], mutant["line"], mutant["becomes"]))
    made_with = {"python": platform.python_version(), "cosmic_ray": version("cosmic_ray")}
    text = json.dumps({**made_with, "mutants": mutants}, ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"{sum(mutant['killed'] for mutant in mutants)} of {len(mutants)} killed: {path}")


def _change(item: WorkItem, result: WorkResult) -> dict[str, str]:
    """Where a mutant is, and what it changes to what."""
    lines = result.diff.splitlines()
    sides = [
        " ".join(line[1:].strip() for line in lines if line.startswith(sign)).strip()
        for sign in "-+"
    ]
    return dict(
        zip(("file", "was", "becomes"), (str(item.mutations[0].module_path), *sides), strict=True)
    )
