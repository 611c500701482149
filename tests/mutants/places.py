"""Which mutants are tried: one of those at a place in the code, at places drawn at random."""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from cosmic_ray.work_item import MutationSpec, WorkItem

Position = tuple[int, int]


def sample(items: Iterable[WorkItem], count: int, seed: int) -> list[WorkItem]:
    """
    So many mutants, each at a place of its own.

    A product can be replaced by eleven other operations and a number by two, and most of the eleven
    fail at once. So places are drawn, not mutants, and for each place one of its mutants.
    """
    places = defaultdict(list)
    for item in items:
        (mutation,) = item.mutations
        places[_place(mutation)].append(item)
    annotated = {path: _annotations(path) for path in {path for path, *_ in places}}
    executed = sorted(
        (path, start, kind)
        for path, start, kind in places
        if not any(begin <= start < end for begin, end in annotated[path])
    )
    draw = random.Random(seed)
    chosen = draw.sample(executed, min(count, len(executed)))
    return [draw.choice(sorted(places[place], key=_order)) for place in sorted(chosen)]


def _place(mutation: MutationSpec) -> tuple[Path, Position, str]:
    """Where a mutation is, and of what kind: "ReplaceBinaryOperator" of all that replaces one."""
    kind = mutation.operator_name.removeprefix("core/").split("_")[0]
    return mutation.module_path, mutation.start_pos, kind


def _order(item: WorkItem) -> tuple[str, int]:
    (mutation,) = item.mutations
    return mutation.operator_name, mutation.occurrence


def _annotations(path: Path) -> list[tuple[Position, Position]]:
    """Where a file has annotations: they are never evaluated, so nothing there is a change."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for field in ("annotation", "returns"):
            if (note := getattr(node, field, None)) is not None:
                found.append(
                    ((note.lineno, note.col_offset), (note.end_lineno, note.end_col_offset))
                )
    return found
