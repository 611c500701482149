"""
Gradients of a call's inputs, summed over chunks of queries and over heads.

Several chunks may add to one gradient: all heads of a group to their common key, all chunks of a
head to its keys. What they contribute is computed first, by all threads, for a few chunks at a
time, and then added, each gradient by one thread at a time and always in the same order: so bits do
not depend on the number of threads. Long gradients are cut into ranges of keys, so that one head is
enough for all threads. What no other chunk adds to is written at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from topk_np._namespace import Array, add_at, array_namespace, cast, put, zeros
from topk_np.kernels import Engine, tuning
from topk_np.options.call import Call
from topk_np.options.chunk import Chunk, Heads
from topk_np.schedule.plan import slices
from topk_np.schedule.threads import WorkerTeam


class Contribution(Protocol):
    """Something to be added to a gradient (G, n, w)."""

    @property
    def heads(self) -> int:
        """The number of heads, G."""

    def shared(self) -> list[Contribution]:
        """The same for a gradient (1, n, w) that the heads of the stack share."""

    def add_to(self, total: Array, first: int, fresh: bool) -> Array:
        """`total`, the rows from `first` on, with it added: in place or new; `fresh` ones are 0."""


@dataclass(frozen=True)
class Rows:
    """Rows (G, h, w) of a gradient from row `start` on, in its columns from `column` on."""

    rows: Array
    start: int
    column: int

    @property
    def heads(self) -> int:
        """See `Contribution`."""
        return int(self.rows.shape[0])

    def shared(self) -> list[Contribution]:
        """See `Contribution`."""
        heads = range(self.heads)
        return [Rows(self.rows[g : g + 1, ...], self.start, self.column) for g in heads]

    def add_to(self, total: Array, first: int, fresh: bool) -> Array:
        """See `Contribution`."""
        height, width = self.rows.shape[1:]
        rows = slice(self.start - first, self.start - first + height)
        place = (slice(None), rows, slice(self.column, self.column + width))
        return (put if fresh else add_at)(total, place, self.rows)


@dataclass(frozen=True)
class Scattered:
    """The transposed row-sparse matrix of weights (G, C, K) times `rows` (G, C, w)."""

    ops: Engine
    weights: Array
    indices: Array
    pattern: Any
    keys: int
    rows: Array

    @property
    def heads(self) -> int:
        """See `Contribution`."""
        return int(self.weights.shape[0])

    def shared(self) -> list[Contribution]:
        """See `Contribution`."""
        weights, indices, rows = map(_one_head, (self.weights, self.indices, self.rows))
        pattern = self.ops.pattern(indices, self.keys)
        return [Scattered(self.ops, weights, indices, pattern, self.keys, rows)]

    def add_to(self, total: Array, first: int, fresh: bool) -> Array:
        """See `Contribution`."""
        return self.ops.scatter_matmul(self.weights, self.pattern, self.rows, total, first, fresh)


@dataclass(frozen=True)
class Slots:
    """The row-sparse matrix of weights (G, C, K) itself, from row `start` on."""

    ops: Engine
    weights: Array
    indices: Array
    start: int

    @property
    def heads(self) -> int:
        """See `Contribution`."""
        return int(self.weights.shape[0])

    def shared(self) -> list[Contribution]:
        """See `Contribution`."""
        heads = [slice(g, g + 1) for g in range(self.heads)]
        return [
            Slots(self.ops, self.weights[own, ...], self.indices[own, ...], self.start)
            for own in heads
        ]

    def add_to(self, total: Array, first: int, fresh: bool) -> Array:
        """See `Contribution`."""
        place = (slice(None), slice(self.start - first, self.start - first + self.weights.shape[1]))
        own = total[(*place, slice(None))]
        pattern = self.ops.pattern(self.indices, total.shape[2])
        updated = self.ops.add_slots(self.weights, pattern, own)
        return total if updated is own else put(total, (*place, slice(None)), updated)


@dataclass(frozen=True)
class Product:
    """The transposed weights (G, C, n), where allowed, times `rows` (G, C, w)."""

    ops: Engine
    weights: Array
    scores: Array
    """-inf where a pair is not allowed."""
    rows: Array
    start: int
    """The row of the gradient that the first column of weights belongs to."""

    @property
    def heads(self) -> int:
        """See `Contribution`."""
        return int(self.weights.shape[0])

    def shared(self) -> list[Contribution]:
        """See `Contribution`."""
        weights, scores, rows = map(_one_head, (self.weights, self.scores, self.rows))
        return [Product(self.ops, weights, scores, rows, self.start)]

    def add_to(self, total: Array, first: int, fresh: bool) -> Array:
        """See `Contribution`."""
        low = max(first, self.start)
        high = min(first + total.shape[1], self.start + self.weights.shape[2])
        for part in slices(max(high - low, 0), tuning.current.product_keys):
            keys = slice(low - self.start + part.start, low - self.start + part.stop)
            rows = slice(low - first + part.start, low - first + part.stop)
            weights, scores = (a[..., keys].mT for a in (self.weights, self.scores))
            product = self.ops.masked_matmul(weights, scores, self.rows)
            place = (slice(None), rows, slice(None))
            total = (put if fresh else add_at)(total, place, product)
        return total


def _one_head(stack: Array) -> Array:
    """(1, G C, n): the rows of all heads of a stack (G, C, n), one head after the other."""
    heads, rows, width = stack.shape
    return array_namespace(stack).reshape(stack, (1, heads * rows, width))


class Place(NamedTuple):
    """Some heads of a gradient."""

    name: str
    heads: Heads
    """Their place among the gradient's own axes."""


@dataclass(frozen=True)
class Gradients:
    """The gradients as one chunk sees them: it adds to them."""

    sums: _Sums
    chunk: Chunk
    waiting: list[tuple[Place, Contribution]] = field(default_factory=list)
    """Contributions to be added in order, since other chunks add there too."""

    def add_rows(self, name: str, start: int, rows: Array, column: int = 0) -> None:
        """Add rows (G, h, w) from row `start` on."""
        self._add(name, Rows(rows, start, column))

    def scatter(self, name: str, weights: Array, indices: Array, pattern: Any, rows: Array) -> None:
        """Add the transposed row-sparse matrix of weights (G, C, K) times rows (G, C, w)."""
        call = self.sums.call
        self._add(name, Scattered(call.ops, weights, indices, pattern, call.keys, rows))

    def add_slots(self, name: str, start: int, weights: Array, indices: Array) -> None:
        """Add the row-sparse matrix of weights (G, C, K) itself, from row `start` on."""
        self._add(name, Slots(self.sums.call.ops, weights, indices, start))

    def add_product(
        self, name: str, start: int, weights: Array, scores: Array, rows: Array
    ) -> None:
        """Add the transposed weights (G, C, n), where allowed, times rows, from `start` on."""
        self._add(name, Product(self.sums.call.ops, weights, scores, rows, start))

    def _add(self, name: str, contribution: Contribution) -> None:
        place = self.sums.place(name, self.chunk.heads)
        if self.sums.alone(name, self.chunk):
            self.sums.write(place, self.chunk, contribution)
        else:
            self.waiting.append((place, contribution))


def sum_gradients(
    call: Call,
    contribute: Callable[[Chunk, Gradients], None],
    chunks: list[Chunk],
    team: WorkerTeam,
    in_flight: int | None = None,
) -> dict[str, Array]:
    """
    The gradients of the inputs by name, (*batch, n, ·).

    ``contribute(chunk, grads)`` tells `grads` what the queries of a chunk add. It is called on
    `in_flight` chunks before that is added up: by default the number that suits the team.
    """
    if in_flight is None:
        in_flight = team.in_flight if call.ops.THREADS else 1
    sums = _Sums(call)
    waves = [chunks[wave] for wave in slices(len(chunks), in_flight)]
    last = sums.last_waves(waves) if sums.narrow else {}

    def collect(chunk: Chunk) -> list[tuple[Place, Contribution]]:
        grads = Gradients(sums, chunk)
        contribute(chunk, grads)
        return grads.waiting

    for i, wave in enumerate(waves):
        waiting = [each for own in team.map(collect, wave) for each in own]
        if waiting:
            shares = _shares(sums, waiting, team.threads)
            for share, rows in zip(shares, team.map(_Share.sum, shares), strict=True):
                if rows is not share.total:
                    sums.put(share.place, share.rows, rows)
        if sums.narrow:
            sums.finish([place for place in sums.unfinished if last[place] == i])
    return sums.grads


class _Sums:
    """
    The gradients while they are summed up, in the dtype that is computed in.

    Where that is wider than the inputs' own, the heads that are not finished have sums apart, so
    that the wide ones are few.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.narrow = call.dtype != call.query.dtype
        self.grads = {
            name: zeros(call.xp, array.shape, call.query.dtype, array)
            for name, array in call.inputs.items()
        }
        self.unfinished: dict[Place, Array] = {}
        self._begun: set[Place] = set()

    def alone(self, name: str, chunk: Chunk) -> bool:
        """Return whether no other chunk adds where this one does, and it does so once."""
        lead = tuple(self.grads[name].shape[:-2])
        whole = name == "query" or chunk.queries == self.call.queries
        return lead == self.call.batch.shape and whole and name != "bias"

    def write(self, place: Place, chunk: Chunk, contribution: Contribution) -> None:
        """Write a contribution to a gradient that no other chunk adds to."""
        rows = chunk.rows if place.name == "query" else slice(0, self.grads[place.name].shape[-2])
        index = (*place.heads.within(tuple(self.grads[place.name].shape[:-2])), rows, slice(None))
        total = self.grads[place.name][index]
        if self.narrow:
            total = zeros(self.call.xp, total.shape, self.call.dtype, total)
        written = contribution.add_to(total, rows.start, fresh=True)
        if self.narrow or written is not total:
            values = cast(self.call.xp, written, self.call.query.dtype)
            self.grads[place.name] = put(self.grads[place.name], index, values)

    def begin(self, place: Place) -> bool:
        """Return whether this is the first time, so that nothing was added there yet."""
        first = place not in self._begun
        self._begun.add(place)
        return first

    def last_waves(self, waves: list[list[Chunk]]) -> dict[Place, int]:
        """The last wave that adds to each place."""
        return {
            self.place(name, chunk.heads): i
            for i, wave in enumerate(waves)
            for chunk in wave
            for name in self.grads
        }

    def place(self, name: str, heads: Heads) -> Place:
        """The place of what some heads contribute to an input's gradient."""
        lead = self.grads[name].shape[:-2]
        first = tuple(0 if n == 1 else i for i, n in zip(heads.first, lead, strict=True))
        return Place(name, Heads(first, heads.axis, min(heads.number, lead[heads.axis])))

    def rows(self, place: Place, rows: slice) -> Array:
        """Some rows of the sum at a place, (G, n, ·)."""
        grad = self.grads[place.name]
        if not self.narrow:
            return grad[(*place.heads.within(tuple(grad.shape[:-2])), rows, slice(None))]
        if place not in self.unfinished:
            shape = (place.heads.number, *grad.shape[-2:])
            self.unfinished[place] = zeros(self.call.xp, shape, self.call.dtype, grad)
        return self.unfinished[place][:, rows, :]

    def put(self, place: Place, rows: slice, values: Array) -> None:
        """Put a new sum in the place of some rows, where it was not added to them directly."""
        if self.narrow:
            whole = (slice(None), rows, slice(None))
            self.unfinished[place] = put(self.unfinished[place], whole, values)
        else:
            grad = self.grads[place.name]
            index = (*place.heads.within(tuple(grad.shape[:-2])), rows, slice(None))
            self.grads[place.name] = put(grad, index, values)

    def finish(self, places: list[Place]) -> None:
        """Round the sums apart that nothing will be added to any more."""
        for place in places:
            grad = self.grads[place.name]
            values = cast(self.call.xp, self.unfinished.pop(place), grad.dtype)
            index = (*place.heads.within(tuple(grad.shape[:-2])), slice(None), slice(None))
            self.grads[place.name] = put(grad, index, values)


class _Share(NamedTuple):
    """A range of rows of a gradient at one place, and what to add there, in order."""

    place: Place
    rows: slice
    total: Array
    """These rows, so far."""
    contributions: list[Contribution]
    fresh: bool
    """True if nothing was added there yet."""

    def sum(self) -> Array:
        """The rows with all contributions added: in place, or a new array."""
        total, fresh = self.total, self.fresh
        for contribution in self.contributions:
            if fresh and not isinstance(contribution, Scattered):
                total, fresh = _cleared(total), False
            total, fresh = contribution.add_to(total, self.rows.start, fresh), False
        return total


def _cleared(total: Array) -> Array:
    """
    Rows that are 0, with 0 written to them.

    Memory that is read before it is written is mapped twice, and between the two all threads have
    to be interrupted.
    """
    return put(total, ..., 0)


def _shares(sums: _Sums, waiting: list[tuple[Place, Contribution]], threads: int) -> list[_Share]:
    """The shares that can be added independently: a place of a gradient, or a range of its rows."""
    gathered: dict[Place, list[Contribution]] = {}
    for place, contribution in waiting:
        shared = contribution.heads > place.heads.number
        own = contribution.shared() if shared else [contribution]
        gathered.setdefault(place, []).extend(own)
    scattered = [place for place, own in gathered.items() if isinstance(own[0], Scattered)]
    # Only threads of ours share the work here, and a device would sort anew for each range.
    ranges = -(-threads // len(scattered)) if scattered and sums.call.ops.THREADS else 1
    shares = []
    for place, own in gathered.items():
        length = sums.grads[place.name].shape[-2]
        size = max(length, 1)
        # Short rows may be multiplied densely, where a part of them would round differently.
        if place in scattered and length > tuning.current.short_keys:
            size = max(tuning.current.least_range, -(-size // ranges))
        fresh = sums.begin(place)
        for rows in slices(length, size):
            shares.append(_Share(place, rows, sums.rows(place, rows), own, fresh))
    return shares
