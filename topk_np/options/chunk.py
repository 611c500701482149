"""
A chunk of work, C queries of G heads: its part of arrays and numbers over all heads.

And `Option`, with a hook for each thing that an option may do to a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from topk_np._namespace import (
    Array,
    Namespace,
    array_namespace,
    check_broadcasts,
    check_device,
    check_integer,
    dtype_name,
    namespace_of,
    put,
    to_numpy,
)
from topk_np.kernels import Engine

FURTHEST = 2**62  # position that is computed with

Shape = tuple[int, ...]


class Heads(NamedTuple):
    """G heads that follow each other along one of the batch axes."""

    first: Shape
    """The place of the first among the batch axes."""
    axis: int
    number: int
    """G"""

    def within(self, lead: Shape) -> tuple[int | slice, ...]:
        """Their place in an array with leading axes `lead`, which broadcast: (G or 1, ...)."""
        return _within(self, lead)


@lru_cache(4096)  # asked for every array of every chunk
def _within(heads: Heads, lead: Shape) -> tuple[int | slice, ...]:
    place: list[int | slice] = [i if n > 1 else 0 for i, n in zip(heads.first, lead, strict=True)]
    first = place[heads.axis]
    last = heads.first[heads.axis] + heads.number if lead[heads.axis] > 1 else 1
    place[heads.axis] = slice(first, last)
    return tuple(place)


class Chunk(NamedTuple):
    """The same queries of each of G heads."""

    heads: Heads
    rows: slice

    @property
    def queries(self) -> int:
        """C, the number of queries of each head."""
        return int(self.rows.stop - self.rows.start)

    def stack(self, array: Array) -> Array:
        """(G, n, ·): the heads' matrices of an array (*batch, n, ·); a view."""
        own = array[(*self.heads.within(tuple(array.shape[:-2])), ...)]
        if own.shape[0] == self.heads.number:
            return own
        return array_namespace(array).broadcast_to(own, (self.heads.number, *own.shape[1:]))

    def pairs(self, array: Array, keys: slice) -> Array:
        """(G or 1, C or 1, n or 1): some keys of an array that broadcasts to (*batch, Q, N)."""
        rows = self.rows if array.shape[-2] > 1 else slice(None)
        columns = keys if array.shape[-1] > 1 else slice(None)
        return array[(*self.heads.within(tuple(array.shape[:-2])), rows, columns)]

    def numbers(self, numbers: int | np.ndarray) -> list[int]:
        """One number for each head, or one alone where all are the same."""
        if isinstance(numbers, int):
            return [numbers]
        own: list[int] = numbers[self.heads.within(numbers.shape)].tolist()
        return own if len(set(own)) > 1 else own[:1]


@dataclass(eq=False)
class Output:
    """An array over all heads and queries that chunks fill, also where none can be written to."""

    array: Array
    """(*batch, Q, ·)"""

    def put(self, chunk: Chunk, piece: Array) -> None:
        """Store what was computed for a chunk, (G, C, ·)."""
        place = chunk.heads.within(tuple(self.array.shape[:-2]))
        self.array = put(self.array, (*place, chunk.rows, slice(None)), piece)


class Option:
    """
    An option, checked: each hook does nothing, unless the option says otherwise.

    The passes call the hooks of all options in the order of `topk_np.options.call.Call.options`.
    """

    score_matrices = 0
    """The number of matrices that it holds of the size of a block of scores."""
    slot_matrices = 0
    """The number of values that it holds for each kept slot."""
    held_matrices = 0
    """The number of these that it holds until its gradient is added up."""
    masks = False
    """True if it hides keys from queries."""
    gradient = ""
    """The name of the gradient of its `array` (*batch, n, ·); empty if it has none."""

    def visible(self, chunk: Chunk, keys: slice) -> slice:
        """The range of these keys outside of which no query of the chunk may attend to any."""
        return keys

    def scores(self, scores: Array, chunk: Chunk, keys: slice, ops: Engine) -> Array:
        """The scores (G, C, n) of some keys, our own to change, with what the option does."""
        return scores

    def factors(self, chunk: Chunk, indices: Array, dtype: Any) -> Array | None:
        """(G, C, K): factors of the weights of some keys; None if there are none."""
        return None

    def add_gradients(
        self, grads: Any, chunk: Chunk, dkept: Array, indices: Array, ops: Engine
    ) -> None:
        """Add to `grads` what follows from the gradient of the kept scores (G, C, K)."""

    def add_dense_gradients(self, grads: Any, chunk: Chunk, keys: slice, dscores: Array) -> None:
        """Add to `grads` what follows from the gradient of the scores (G, C, n) of these keys."""

    def own_gradient(self, total: Array) -> Array:
        """The gradient (*batch, n, ·) of its array in the shape that the caller gave."""
        return total


@dataclass(frozen=True)
class Positions:
    """The position of each query of each head: its index plus an offset. A key's is its index."""

    offset: int | np.ndarray = 0
    """The position of the first query: one for all, or an integer array over the batch axes."""

    def first(self, chunk: Chunk) -> list[int]:
        """The position of a chunk's first query, for each head or one for all."""
        if isinstance(self.offset, int):
            return [chunk.rows.start + self.offset]
        return [chunk.rows.start + offset for offset in chunk.numbers(self.offset)]

    def column(self, chunk: Chunk, like: Array) -> Array:
        """(G or 1, C, 1) int64: the positions of a chunk's queries, on the device of `like`."""
        xp = array_namespace(like)
        heads = [row(xp, first, chunk.queries, like)[:, :, None] for first in self.first(chunk)]
        return heads[0] if len(heads) == 1 else xp.concat(heads, axis=0)


def row(xp: Namespace, first: int, count: int, like: Array) -> Array:
    """(1, count) int64: the positions from `first` on, on the device of `like`."""
    if abs(first) > FURTHEST:
        raise ValueError(
            "query_offset must be at most 2^62 in size where every position counts, "
            f"got the position {first}"
        )
    return xp.arange(first, first + count, dtype=xp.int64, device=device(like))[None, :]


def over_heads(xp: Namespace, numbers: list[int], like: Array) -> Array:
    """(G or 1, 1, 1) int64: a number for each head, or one for all, on the device of `like`."""
    return xp.asarray(numbers, dtype=xp.int64, device=device(like))[:, None, None]


def check_lead_integers(name: str, given: Any, query: Array, batch: Shape) -> int | np.ndarray:
    """Check an option that is an integer, or an integer array over the leading axes."""
    if getattr(given, "shape", ()) == ():
        return check_integer(name, given)
    namespace_of({"query": query, name: given})
    check_device(name, given, "query", query)
    if "int" not in dtype_name(given):
        raise TypeError(
            f"{name} must be an integer or an integer array, got an array of dtype {given.dtype}"
        )
    check_broadcasts(name, tuple(given.shape), batch, "(...)")
    return to_numpy(given).astype(np.int64)


@dataclass(frozen=True)
class Batch:
    """The leading axes of a call, and the fewer axes that its heads are numbered by."""

    lead: Shape
    """The leading axes as the caller has them."""
    groups: tuple[tuple[int, ...], ...]
    """The groups of these axes that make one."""
    shape: Shape
    """The lengths of the batch axes, of which there is at least one."""

    @classmethod
    def of(cls, lead: Shape, arrays: Iterable[Array], copied: Iterable[Array] = ()) -> Batch:
        """
        Join neighbouring axes as far as no array has to be copied for it.

        Of `arrays` (..., n, ·) and those that may be `copied` the leading axes broadcast to `lead`.
        """
        if len(lead) == 1:
            return cls.apart(lead)
        patterns = [_lead_of(array, lead, True) for array in arrays]
        patterns += [_lead_of(array, lead, False) for array in copied]
        groups: list[list[int]] = []
        for axis, length in enumerate(lead):
            if length == 1:
                continue
            if groups and all(_joins(*own, groups[-1][-1], axis) for own in patterns):
                groups[-1].append(axis)
            else:
                groups.append([axis])
        joined = tuple(map(tuple, groups)) or ((),)
        return cls(lead, joined, _joined(lead, joined))

    @classmethod
    def apart(cls, lead: Shape) -> Batch:
        """Each leading axis by itself."""
        return cls(lead, tuple((axis,) for axis in range(len(lead))) or ((),), lead or (1,))

    def fold(self, xp: Namespace, array: Array) -> Array:
        """An array (..., n, ·) as (*batch, n, ·)."""
        *lead, rows, width = array.shape
        if len(lead) == len(self.lead) == len(self.groups):
            return array
        full = (1,) * (len(self.lead) - len(lead)) + tuple(lead)
        return xp.reshape(array, (*_joined(full, self.groups), rows, width))

    def unfold(self, xp: Namespace, array: Array) -> Array:
        """An array (*batch, n, ·) over all heads with the caller's leading axes."""
        return xp.reshape(array, (*self.lead, *array.shape[-2:]))

    def fold_numbers(self, numbers: int | np.ndarray) -> int | np.ndarray:
        """Numbers over the leading axes as numbers over all batch axes."""
        if isinstance(numbers, int):
            return numbers
        return np.broadcast_to(numbers, self.lead).reshape(self.shape)


def _joined(lead: Shape, groups: tuple[tuple[int, ...], ...]) -> Shape:
    """The lengths of axes that each stand for a group of the leading ones."""
    return tuple(math.prod(lead[axis] for axis in group) for group in groups)


def _lead_of(array: Array, lead: Shape, strict: bool) -> tuple[Shape, Mapping[int, int] | None]:
    """The leading axes of an array over those of `lead`, and the strides of their entries."""
    missing = len(lead) - (array.ndim - 2)
    strides = getattr(array, "strides", None)
    shape = (1,) * missing + tuple(array.shape[:-2])
    if not strict or math.prod(array.shape) == 0:
        return shape, None
    if strides is None:  # another library: what can be joined is not known
        return shape, {}
    return shape, {missing + axis: stride for axis, stride in enumerate(strides[:-2])}


def _joins(shape: Shape, strides: Mapping[int, int] | None, left: int, right: int) -> bool:
    """Return whether two axes that are one in the batch can be one in an array of this shape."""
    if shape[left] == 1 or shape[right] == 1:
        return shape[left] == shape[right]
    if strides is None:
        return True
    return bool(strides) and strides[left] == strides[right] * shape[right]
