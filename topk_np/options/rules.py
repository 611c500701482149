"""The rules by which a query keeps keys: the k best, the best that hold a share p, some always."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from topk_np._namespace import Array, array_namespace, check_integer, check_number
from topk_np.options.chunk import Chunk, Positions, over_heads, row


@dataclass(frozen=True)
class KeepRule:
    """The number of its best keys that a query keeps."""

    k: int
    """At most; max_k where there is a p."""
    p: float | None = None
    """Of these, the fewest that hold this share of the softmax's weights; None: all k."""


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
    """Keys kept in addition to the best: the first of all, and the nearest at or before the query."""

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
        """(G or 1, C, n) bool: which of some keys are always kept, by which of a chunk's queries."""
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
        """(G or 1, C, 1) int64: the nearest key at or before each query; negative if there is none."""
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
