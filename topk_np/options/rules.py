"""The rules by which a query keeps keys: the k best, the best that hold a share p, some always."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import device

from topk_np._namespace import (
    Array,
    Namespace,
    array_namespace,
    check_integer,
    check_number,
    cumulative_sum,
)
from topk_np.kernels import Engine
from topk_np.options.chunk import Chunk, Positions, over_heads, row


@dataclass(frozen=True)
class KeepRule:
    """The number of its best keys that a query keeps."""

    k: int
    """At most; max_k where there is a p."""
    p: float | None = None
    """A share of the softmax's weights: the fewest of these that hold it; None: all k."""


def check_share(k: Any, p: Any, max_k: Any) -> KeepRule:
    """Check the options `k`, `p` and `max_k` where it is not `k` alone."""
    if p is None:
        if max_k is not None:
            raise ValueError(f"max_k is for p, which was not given, got max_k={max_k!r}")
        raise TypeError("k must be an integer, or p be given with max_k, got None for both")
    if k is not None:
        raise ValueError(f"either k or p must be given, not both, got k={k!r} and p={p!r}")
    p = check_number("p", p)
    if not 0 < p <= 1:
        raise ValueError(f"p must be above 0 and at most 1, got {p}")
    if max_k is None:
        raise ValueError("max_k, the most keys that a query keeps, is required with p, got None")
    return KeepRule(check_integer("max_k", max_k, least=1), p)


@dataclass(frozen=True, eq=False)
class AlwaysKept:
    """Keys kept in addition to the best: the first of all, and the nearest up to the query."""

    sinks: int
    local: int
    keys: int | np.ndarray
    """The number of keys: one for all heads, or an array over the batch axes."""
    positions: Positions

    @property
    def slots(self) -> int:
        """The most keys that they can be."""
        return self.sinks + self.local

    def pairs(self, like: Array, chunk: Chunk, keys: slice) -> Array:
        """(G or 1, C, n) bool: which of some keys each query always keeps."""
        key = row(array_namespace(like), keys.start, keys.stop - keys.start, like)
        nearest = self._nearest(like, chunk)
        return (key < self.sinks) | ((key <= nearest) & (key > nearest - self.local))

    def indices(self, like: Array, chunk: Chunk) -> Array:
        """(G or 1, C, sinks + local) int64: the keys that are always kept, each once, and -1."""
        xp = array_namespace(like)
        nearest = self._nearest(like, chunk)
        sinks = xp.broadcast_to(row(xp, 0, self.sinks, like), (*nearest.shape[:2], self.sinks))
        local = nearest - row(xp, 0, self.local, like)
        return xp.concat([sinks, xp.where(local < self.sinks, -1, local)], axis=2)

    def _nearest(self, like: Array, chunk: Chunk) -> Array:
        """(G or 1, C, 1) int64: the nearest key at or before each query; negative if none is."""
        xp, count = array_namespace(like), chunk.queries
        lengths, firsts = chunk.numbers(self.keys), self.positions.first(chunk)
        keys = over_heads(xp, lengths, like)
        # The position may be too large for an array: as near to the keys as changes nothing.
        firsts = [max(-count, min(first, max(lengths))) for first in firsts]
        query = over_heads(xp, firsts, like) + row(xp, 0, count, like)[:, :, None]
        return xp.where(query < keys, query, keys - 1)


def check_always_keep(always_keep: Any, keys: int) -> tuple[int, int]:
    """Check the option `always_keep`, a pair (sinks, local); more than all keys is all keys."""
    if not isinstance(always_keep, (tuple, list)):
        raise TypeError(
            f"always_keep must be a pair (sinks, local), got {type(always_keep).__name__}"
        )
    if len(always_keep) != 2:
        raise ValueError(
            f"always_keep must be a pair (sinks, local), got {len(always_keep)} entries"
        )
    sinks, local = (
        min(check_integer(f"always_keep's {name}", count, least=0), keys)
        for name, count in zip(("sinks", "local"), always_keep, strict=True)
    )
    return sinks, local


class Share:
    """The softmax's denominator of each row, summed up from block to block."""

    def __init__(self, ops: Engine, xp: Namespace, p: float) -> None:
        self._ops, self._xp, self._p = ops, xp, p
        self._largest: Array = None  # (G, C, 1); a row without any allowed score has -inf
        self._total: Array = None

    def add(self, scores: Array) -> None:
        """Take in a block of scores (G, C, n)."""
        xp = self._xp
        largest = xp.max(scores, axis=2, keepdims=True)
        if self._largest is not None:
            largest = xp.maximum(largest, self._largest)
        total = xp.sum(xp.exp(scores - self._finite(largest)), axis=2, keepdims=True)
        if self._total is not None:
            total = total + self._total * xp.exp(self._largest - self._finite(largest))
        self._largest, self._total = largest, total

    def weights(self, scores: Array) -> Array:
        """The weights of some of the scores seen."""
        xp = self._xp
        total = xp.where(self._total == 0, 1.0, self._total)
        return xp.exp(scores - self._finite(self._largest)) / total

    def _finite(self, largest: Array) -> Array:
        return self._xp.where(largest == -self._xp.inf, 0.0, largest)

    def fewest(self, kept: Array, indices: Array, held: Array | float) -> tuple[Array, Array]:
        """The largest scores, the fewest that bring what is `held` already to a share of p."""
        xp = self._xp
        order = falling(xp, kept)
        weights = xp.take_along_axis(self.weights(kept), order, axis=2)
        if self._ops.DOUBLE:
            weights = xp.astype(weights, xp.float64)
        before = cumulative_sum(xp, weights) - weights
        if not isinstance(held, float):
            before = before + xp.sum(held, axis=2, keepdims=True)
        enough = (before >= self._p) & (before > 0)  # not with NaN; the first always stays
        enough = xp.take_along_axis(enough, xp.argsort(order, axis=2), axis=2)
        return xp.where(enough, -xp.inf, kept), xp.where(enough, -1, indices)


class SetAside:
    """The keys that are always kept: taken out of the blocks before these are ranked."""

    def __init__(self, always: AlwaysKept, ops: Engine, chunk: Chunk, query: Array) -> None:
        self._xp = xp = array_namespace(query)
        self._ops, self._always, self._chunk = ops, always, chunk
        places = always.indices(query, chunk)
        shape = (*query.shape[:2], places.shape[2])
        self._places = xp.broadcast_to(places, shape)
        self.scores = xp.full(shape, -xp.inf, dtype=query.dtype, device=device(query))
        """(G, C, S); -inf where a key is masked, or there is none."""

    @property
    def indices(self) -> Array:
        """(G, C, S) int32; -1 where the score is -inf."""
        xp = self._xp
        return xp.astype(xp.where(self.scores == -xp.inf, -1, self._places), xp.int32)

    def take(self, scores: Array, keys: slice) -> Array:
        """Remember the scores of those among `keys`; the others, with -inf in their place."""
        xp = self._xp
        here = (self._places >= keys.start) & (self._places < keys.stop)
        inside = xp.astype(xp.where(here, self._places - keys.start, -1), xp.int32)
        self.scores = xp.where(here, self._ops.take_slots(scores, inside), self.scores)
        return self._ops.hide(scores, ~self._always.pairs(scores, self._chunk, keys))


def falling(xp: Namespace, values: Array) -> Array:
    """A stable order of each row: NaN, then falling values."""
    nan = xp.isnan(values)
    order = xp.argsort(xp.where(nan, 0.0, -values), axis=-1, stable=True)
    rest = xp.astype(xp.take_along_axis(~nan, order, axis=-1), xp.int8)
    return xp.take_along_axis(order, xp.argsort(rest, axis=-1, stable=True), axis=-1)


def in_slot_order(xp: Namespace, kept: Array, indices: Array, slots: int) -> tuple[Array, Array]:
    """The first slots in ascending order of their index, unused ones last."""
    last = xp.iinfo(indices.dtype).max
    order = xp.argsort(xp.where(indices < 0, last, indices), axis=2, stable=True)[..., :slots]
    return tuple(xp.take_along_axis(array, order, axis=2) for array in (kept, indices))
