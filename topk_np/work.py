"""
The pieces that work is cut into: some queries of a head, or of several that are short.

Everything about a task is plain matrices: query rows (G C, D), one head below the other; of each
head a key (N, D) and a value (N, V).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from topk_np._namespace import Array, array_namespace
from topk_np.positions import Head


class Task(NamedTuple):
    """Some queries, the same of each of G heads: one head, or several that are short."""

    heads: tuple[Head, ...]
    rows: slice

    def per_head(self, stacked: Array) -> list[Array]:
        """The parts of an array whose rows are those of all heads, one head after the other."""
        size = stacked.shape[0] // len(self.heads)
        return [stacked[i * size : (i + 1) * size, ...] for i in range(len(self.heads))]


@dataclass(frozen=True)
class Part:
    """The matrices that a task needs: queries stacked, the others head by head as given."""

    query: Array
    """(G C, D), in the computing dtype."""
    matrices: dict[str, list[Array]]
    """By name, one of each head."""

    def stacked(self, name: str) -> Array:
        """(G N, ...): the matrices called `name` one below the other; not copied if it is one."""
        matrices = self.matrices[name]
        if len(matrices) == 1:
            return matrices[0]
        return array_namespace(self.query).concat(matrices, axis=0)


def each_head(task: Task, stacked: Array, make: Callable[[int, Array], Array]) -> Array:
    """What ``make(i, rows)`` makes of the rows of each head of `stacked`, in place or not."""
    if len(task.heads) == 1:
        return make(0, stacked)
    rows = task.per_head(stacked)
    made = [make(i, own) for i, own in enumerate(rows)]
    if all(new is own for new, own in zip(made, rows, strict=True)):
        return stacked
    return array_namespace(stacked).concat(made, axis=0)
