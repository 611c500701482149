"""
Gradients of a problem's inputs, summed over chunks of queries and over heads.

The chunks are worked on by all threads at once, and several may add to one gradient: all heads of
a group to their common key, all chunks of a head to its keys. So the terms of a wave of chunks are
made first, in any order, and then added, each gradient by one thread at a time and always in the
same order. Long gradients are cut into ranges of keys, so that one head is enough for all threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from topk_np._namespace import Array, cast, is_numpy, put
from topk_np.chunking import slices
from topk_np.positions import Head, own_place
from topk_np.problem import Problem
from topk_np.terms import SparseTerm, Term
from topk_np.work import Task
from topk_np.workers import Crew

LEAST_RANGE = 4096  # keys of a gradient that is cut into ranges


Addend = tuple[str, Head, Term]  # the input and the head whose gradient the term is added to


Place = tuple[str, Head]  # an input, and the place of a head among its own leading axes


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
    tasks before what they contribute is added: a wave of the crew's, unless told otherwise.
    """
    if wave_size is None:
        wave_size = crew.wave if is_numpy(problem.xp) else 1
    sums = _Sums(problem)
    waves = [tasks[wave] for wave in slices(len(tasks), wave_size)]
    last = {place: i for i, wave in enumerate(waves) for place in sums.places(wave)}
    for i, wave in enumerate(waves):
        made = crew.map(terms_of, wave)
        addends = [addend for addends in made for addend in addends]
        shares = _shares(problem, sums, addends, crew.threads)
        for share, rows in zip(shares, crew.map(_Share.sum, shares), strict=True):
            if rows is not share.total:
                sums.put(share.place, share.rows, rows)
        sums.finish([place for place in sums.unfinished if last[place] == i])
    return sums.grads


class _Sums:
    """
    The gradients while they are summed up, in the dtype that is computed in.

    Where that is wider than the inputs' own, the heads that are not finished have sums apart, so
    that the wide ones are few.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._narrow = problem.dtype != problem.query.dtype
        self.grads = {
            name: problem.zeros(*array.shape, dtype=problem.query.dtype)
            for name, array in problem.inputs.items()
        }
        self.unfinished: dict[Place, Array] = {}
        self._begun: set[Place] = set()

    def begin(self, place: Place) -> bool:
        """Whether this is the first time, so that nothing was added there yet."""
        first = place not in self._begun
        self._begun.add(place)
        return first

    def places(self, tasks: list[Task]) -> set[Place]:
        """Where the tasks may add to, if there will be sums apart."""
        if not self._narrow:
            return set()
        return {
            self.place(name, head) for task in tasks for head in task.heads for name in self.grads
        }

    def place(self, name: str, head: Head) -> Place:
        """Where what a head contributes to an input's gradient belongs."""
        return name, own_place(self.grads[name].shape[:-2], head)

    def rows(self, place: Place, rows: slice) -> Array:
        """Some rows of the sum at a place."""
        name, own = place
        if not self._narrow:
            return self.grads[name][(*own, rows, slice(None))]
        if place not in self.unfinished:
            self.unfinished[place] = self._problem.zeros(*self.grads[name].shape[-2:])
        return self.unfinished[place][rows, :]

    def put(self, place: Place, rows: slice, values: Array) -> None:
        """Put a new sum in the place of some rows, where it was not added to them directly."""
        name, own = place
        if self._narrow:
            self.unfinished[place] = put(self.unfinished[place], (rows, slice(None)), values)
        else:
            self.grads[name] = put(self.grads[name], (*own, rows, slice(None)), values)

    def finish(self, places: list[Place]) -> None:
        """Round the sums apart that nothing will be added to any more."""
        for place in places:
            name, own = place
            values = cast(self._problem.xp, self.unfinished.pop(place), self.grads[name].dtype)
            self.grads[name] = put(self.grads[name], (*own, slice(None), slice(None)), values)


class _Share(NamedTuple):
    """A range of rows of one head's gradient, and the terms to add there, in order."""

    place: Place
    rows: slice
    total: Array
    """These rows, so far."""
    terms: list[Term]
    write_first: bool
    """Whether they are still 0, in memory that may never have been written to."""

    def sum(self) -> Array:
        """The rows with all terms added: in place, or a new array."""
        total = self.total
        if self.write_first:
            # Memory that is read before it is written is mapped twice, and between the two all
            # threads have to be interrupted.
            total[...] = 0
        for term in self.terms:
            total = term.add_to(total, self.rows.start)
        return total


def _shares(problem: Problem, sums: _Sums, addends: list[Addend], threads: int) -> list[_Share]:
    """What can be added independently: one head of one gradient, or a range of its rows."""
    gathered: dict[Place, list[Term]] = {}
    for name, head, term in addends:
        gathered.setdefault(sums.place(name, head), []).append(term)
    scattered = [place for place, terms in gathered.items() if isinstance(terms[0], SparseTerm)]
    # Only NumPy has several threads here, and a device would sort anew for each range.
    ranges = -(-threads // len(scattered)) if scattered and is_numpy(problem.xp) else 1
    shares = []
    for place, terms in gathered.items():
        length = sums.grads[place[0]].shape[-2]
        size = max(length, 1)
        if place in scattered:
            size = max(LEAST_RANGE, -(-size // ranges))
        write_first = sums.begin(place) and is_numpy(problem.xp)
        for rows in slices(length, size):
            shares.append(_Share(place, rows, sums.rows(place, rows), terms, write_first))
    return shares
