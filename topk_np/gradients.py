"""
Gradients of a problem's inputs, summed over chunks of queries and over heads.

The chunks are worked on by all threads at once, and several may add to one gradient: all heads of
a group to their common key, all chunks of a head to its keys. So the terms of a wave of chunks are
made first, in any order, and then added, each gradient by one thread at a time and always in the
same order. Long gradients are cut into ranges of keys, so that one head is enough for all threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from topk_np._namespace import Array, cast, is_numpy, put
from topk_np.chunking import slices
from topk_np.positions import Head, own_place
from topk_np.problem import Problem, Task
from topk_np.terms import SparseTerm, Term
from topk_np.workers import MOST_TASKS, Crew

MOST_RANGES = 4  # ranges of keys that one gradient is cut into
LEAST_RANGE = 4096  # keys


Addend = tuple[str, Head, Term]  # the input and the head whose gradient the term is added to


class _Share(NamedTuple):
    """A range of rows of one head's gradient, and the terms to add there, in order."""

    name: str
    place: tuple[Any, ...]
    """Where the rows are in the gradient of that name."""
    rows: Array
    first: int
    terms: list[Term]

    def sum(self) -> Array:
        """The rows with all terms added: in place, or a new array."""
        total = self.rows
        for term in self.terms:
            total = term.add_to(total, self.first)
        return total


def sum_gradients(
    problem: Problem,
    terms_of: Callable[[Task], list[Addend]],
    tasks: list[Task],
    crew: Crew,
    wave_size: int | None = None,
) -> dict[str, Array]:
    """
    The gradients of the inputs by name.

    ``terms_of(task)`` gives what the queries of a task contribute; it is called on `wave_size`
    tasks before what they contribute is added: as many as may run at once, unless told otherwise.
    """
    if wave_size is None:
        wave_size = MOST_TASKS if is_numpy(problem.xp) else 1
    sums = {name: problem.zeros(*array.shape) for name, array in problem.inputs.items()}
    for wave in slices(len(tasks), wave_size):
        made = crew.map(terms_of, tasks[wave])
        shares = _shares(problem, sums, [addend for addends in made for addend in addends])
        for share, rows in zip(shares, crew.map(_Share.sum, shares), strict=True):
            if rows is not share.rows:
                sums[share.name] = put(sums[share.name], share.place, rows)
    # One at a time: sums of half precision are wider than the gradients they become.
    dtype = problem.query.dtype
    return {name: cast(problem.xp, sums.pop(name), dtype) for name in list(sums)}


def _shares(problem: Problem, sums: dict[str, Array], addends: list[Addend]) -> list[_Share]:
    """What can be added independently: one head of one gradient, or a range of its rows."""
    gathered: dict[tuple[str, Head], list[Term]] = {}
    for name, head, term in addends:
        place = own_place(sums[name].shape[:-2], head)
        gathered.setdefault((name, place), []).append(term)
    shares = []
    for (name, place), terms in gathered.items():
        length = sums[name].shape[-2]
        size = max(length, 1)
        # Only NumPy has several threads here, and a device would sort anew for each range.
        if isinstance(terms[0], SparseTerm) and is_numpy(problem.xp):
            size = max(LEAST_RANGE, -(-size // MOST_RANGES))
        for rows in slices(length, size):
            where = (*place, rows, slice(None))
            shares.append(_Share(name, where, sums[name][where], rows.start, terms))
    return shares
