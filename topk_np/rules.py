"""The rules by which a query keeps keys: the k best, the best that hold a mass p, some always."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from topk_np._namespace import Array, array_namespace, check_integer, check_number
from topk_np.positions import Head, Positions, column, of_lead, row


@dataclass(frozen=True)
class Rule:
    """How many of its best keys a query keeps."""

    most: int
    """At most so many: k, or max_k."""
    p: float | None = None
    """No more than hold this share of the softmax's weights; None: as many as there may be."""


def make_rule(k: Any, p: Any = None, max_k: Any = None) -> Rule:
    """Check the options `k`, `p` and `max_k`."""
    if p is None:
        if max_k is not None:
            raise ValueError(f"max_k is for p, which was not given, got max_k={max_k!r}")
        if k is None:
            raise TypeError("k must be an integer, or p be given with max_k, got None for both")
        return Rule(check_integer("k", k, least=1))
    if k is not None:
        raise ValueError(f"either k or p must be given, not both, got k={k!r} and p={p!r}")
    p = check_number("p", p)
    if not 0 < p <= 1:
        raise ValueError(f"p must be above 0 and at most 1, got {p}")
    if max_k is None:
        raise ValueError("max_k, the most keys that a query keeps, is required with p, got None")
    return Rule(check_integer("max_k", max_k, least=1), p)


@dataclass(frozen=True)
class AlwaysKept:
    """Keys kept beside the best: the first of all, and the nearest at or before the query."""

    sinks: int
    local: int
    keys: int | np.ndarray
    """How many keys there are: one number for all, or an array over the leading axes."""
    positions: Positions

    @property
    def slots(self) -> int:
        """How many keys they are at most."""
        return self.sinks + self.local

    def pairs(self, like: Array, head: Head, rows: slice, keys: slice) -> Array:
        """(C, n) bool: which of some keys are always kept, by which of some queries."""
        key = row(array_namespace(like), keys.start, keys.stop - keys.start, like)
        nearest = self._nearest(like, head, rows)
        return (key < self.sinks) | ((key <= nearest) & (key > nearest - self.local))

    def indices(self, like: Array, head: Head, rows: slice) -> Array:
        """(C, sinks + local) int64: the keys that are always kept, each once, and -1."""
        xp = array_namespace(like)
        sinks = row(xp, 0, self.sinks, like)
        sinks = xp.broadcast_to(sinks, (rows.stop - rows.start, self.sinks))
        local = self._nearest(like, head, rows) - row(xp, 0, self.local, like)
        return xp.concat([sinks, xp.where(local < self.sinks, -1, local)], axis=1)

    def _nearest(self, like: Array, head: Head, rows: slice) -> Array:
        """(C, 1) int64: the nearest key at or before each query; negative where there is none."""
        xp, count = array_namespace(like), rows.stop - rows.start
        # The position may be too large for an array: as near to the keys as changes nothing.
        keys = of_lead(self.keys, head)
        first = max(-count, min(self.positions.first(head, rows), keys))
        query = column(xp, first, count, like)
        return xp.where(query < keys, query, keys - 1)


def check_always_keep(always_keep: Any, keys: int) -> tuple[int, int]:
    """Check the option `always_keep`, a pair (sinks, local); more than all keys is all keys."""
    if always_keep is None:
        return 0, 0
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
