"""The options that hide keys from queries: made for one chunk at a time, never Q x N."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from topk_np._namespace import (
    Array,
    array_namespace,
    check_broadcasts,
    check_device,
    check_integer,
    dtype_name,
    namespace_of,
)
from topk_np.kernels import Engine
from topk_np.options.chunk import (
    Chunk,
    Option,
    Positions,
    Shape,
    check_lead_integers,
    over_heads,
    row,
)

PairFunction = Callable[[Array, Array], Array]  # of query positions (C, 1) and key positions (1, n)


@dataclass(frozen=True, eq=False)
class Mask(Option):
    """All that hides keys from queries, combined with *and*."""

    positions: Positions
    pairs: Array | PairFunction | None = None
    """
    Boolean, broadcastable to (*batch, Q, N), True where the query may attend; or a function of
    positions (C, 1) and (1, n) that returns such an array for some of the pairs.
    """
    left: int | None = None
    """The number of positions before its own that a query sees; None: all, as for the next."""
    right: int | None = None
    """The number of positions after its own that a query sees: 0 in causal attention."""
    query_lengths: int | np.ndarray | None = None
    """The number of a head's queries, the others seeing nothing; None: all, as for the next."""
    key_lengths: int | np.ndarray | None = None
    """The number of a head's keys."""

    masks = True

    def visible(self, chunk: Chunk, keys: slice) -> slice:
        """See `Option`."""
        start, stop = keys.stop, keys.start
        for first, queries, length in self._heads(chunk, keys.stop):
            if queries > 0:
                own = 0 if self.left is None else first - self.left
                end = length if self.right is None else min(length, first + queries + self.right)
                start, stop = min(start, max(keys.start, own)), max(stop, end)
        return slice(min(start, stop), stop) if start < stop else slice(keys.start, keys.start)

    def _heads(self, chunk: Chunk, keys: int) -> list[tuple[int, int, int]]:
        """The first query's position, the numbers of queries and keys: of each head, or of all."""
        firsts = self.positions.first(chunk)
        ends = (
            [chunk.rows.stop] if self.query_lengths is None else chunk.numbers(self.query_lengths)
        )
        lengths = [keys] if self.key_lengths is None else chunk.numbers(self.key_lengths)
        heads = zip_longest(firsts, ends, lengths)
        one = firsts[0], ends[0], lengths[0]  # where one stands for all
        full = [tuple(o if n is None else n for n, o in zip(h, one, strict=True)) for h in heads]
        return [
            (first, min(end, chunk.rows.stop) - chunk.rows.start, min(length, keys))
            for first, end, length in full
        ]

    def scores(self, scores: Array, chunk: Chunk, keys: slice, ops: Engine) -> Array:
        """The scores (G, C, n), with -inf where a query may not attend to a key."""
        xp, (_, queries, columns) = array_namespace(scores), scores.shape
        if callable(self.pairs):
            scores = ops.hide(scores, self._asked(self.pairs, scores, chunk, keys))
        elif self.pairs is not None:
            scores = ops.hide(scores, chunk.pairs(self.pairs, keys))
        # The first query's outermost columns, as near to these keys as changes nothing: positions
        # may be too large for a kernel.
        least, last = [-queries], [columns]
        firsts = [first - keys.start for first in self.positions.first(chunk)]
        if self.left is not None:
            least = [max(-queries, min(first - self.left, columns)) for first in firsts]
        if self.right is not None:
            last = [max(-queries, min(first + self.right, columns)) for first in firsts]
        if max(least) + queries > 1 or min(last) < columns - 1:
            if len(least) == len(last) == 1:
                scores = ops.hide_outside(scores, least[0], last[0])
            else:
                edges = (np.broadcast_to(edge, (scores.shape[0],)) for edge in (least, last))
                scores = ops.hide_outside(scores, *edges)
        if self.key_lengths is not None:
            lengths = chunk.numbers(self.key_lengths)
            if min(lengths) < keys.stop:
                key = row(xp, keys.start, columns, scores)[None, ...]
                scores = ops.hide(scores, key < over_heads(xp, lengths, scores))
        if self.query_lengths is not None:
            lengths = chunk.numbers(self.query_lengths)
            if min(lengths) < chunk.rows.stop:
                query = row(xp, chunk.rows.start, queries, scores)[:, :, None]
                scores = ops.hide(scores, query < over_heads(xp, lengths, scores))
        return scores

    def _asked(self, pairs: PairFunction, scores: Array, chunk: Chunk, keys: slice) -> Array:
        allowed = call_pair_function("mask", pairs, self.positions, scores, chunk, keys)
        if dtype_name(allowed) != "bool":
            raise TypeError(f"mask must return a boolean array, got dtype {allowed.dtype}")
        return allowed


def call_pair_function(
    name: str,
    function: PairFunction,
    positions: Positions,
    scores: Array,
    chunk: Chunk,
    keys: slice,
) -> Array:
    """(G or 1, C, n): what the function given as option `name` returns for pairs of `scores`."""
    xp, full = array_namespace(scores), tuple(scores.shape[1:])
    heads = []
    for first in positions.first(chunk):
        query = row(xp, first, full[0], scores)[0, :, None]
        result = function(query, row(xp, keys.start, full[1], scores))
        if result is None:
            raise TypeError(f"{name} must return an array, got None")
        namespace_of({"query": scores, f"what {name} returns": result})
        check_broadcasts(f"what {name} returns", tuple(result.shape), full, "(C, n)")
        heads.append(xp.broadcast_to(result, full)[None, ...])
    return heads[0] if len(heads) == 1 else xp.concat(heads, axis=0)


def check_mask(query: Array, mask: Any, full: Shape) -> Array:
    """Check a mask that is an array; with at least two axes."""
    xp = namespace_of({"query": query, "mask": mask})
    check_device("mask", mask, "query", query)
    if dtype_name(mask) != "bool":
        raise TypeError(
            f"mask must be boolean, True where a query may attend, got dtype {mask.dtype}; "
            "terms to be added to the scores are a bias"
        )
    check_broadcasts("mask", tuple(mask.shape), full, "(..., Q, N)")
    if mask.ndim < 2:
        mask = xp.reshape(mask, (1,) * (2 - mask.ndim) + tuple(mask.shape))
    return mask


def check_window(window: Any) -> tuple[int | None, int | None]:
    """Check the option `window`, a pair (left, right)."""
    if not isinstance(window, (tuple, list)):
        raise TypeError(f"window must be a pair (left, right), got {type(window).__name__}")
    if len(window) != 2:
        raise ValueError(f"window must be a pair (left, right), got {len(window)} entries")
    left, right = (
        None if length is None else check_integer(f"window's {side}", length, least=0)
        for side, length in zip(("left", "right"), window, strict=True)
    )
    return left, right


def check_lengths(name: str, given: Any, query: Array, lead: Shape, most: int) -> Any:
    """Check `query_lengths` or `key_lengths`, numbers up to `most`."""
    lengths = check_lead_integers(name, given, query, lead)
    low, high = (
        (lengths,) * 2
        if isinstance(lengths, int)
        else (int(lengths.min(initial=most)), int(lengths.max(initial=0)))
    )
    if low < 0 or high > most:
        raise ValueError(f"{name} must be from 0 to {most}, got {low if low < 0 else high}")
    return lengths
