"""Where queries stand among the keys: a key by its index, a query by its own plus an offset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import device

from topk_np._namespace import (
    Array,
    Namespace,
    check_broadcasts,
    check_device,
    check_integer,
    dtype_name,
    namespace_of,
    to_numpy,
)

Head = tuple[int, ...]  # the place of one head among the leading axes


FURTHEST = 2**62  # position that is computed with


@dataclass(frozen=True)
class Positions:
    """The position of each query of each head."""

    offset: int | np.ndarray = 0
    """The position of the first query: one for all, or an integer array over the leading axes."""

    def first(self, head: Head, rows: slice) -> int:
        """The position of the first of these queries."""
        start: int = rows.start
        return start + of_lead(self.offset, head)


def of_lead(numbers: int | np.ndarray, head: Head) -> int:
    """A head's own number: `numbers` is one for all, or has one for each of the leading axes."""
    return numbers if isinstance(numbers, int) else int(numbers[own_place(numbers.shape, head)])


def of_head(array: Array, head: Head) -> Array:
    """The last two axes of `array` at one head; its leading axes broadcast to the heads'."""
    return array[(*own_place(array.shape[:-2], head), slice(None), slice(None))]


@lru_cache(4096)  # asked for every array of every head
def own_place(lead: tuple[int, ...], head: Head) -> Head:
    """The place of a head among leading axes that broadcast to the heads'."""
    own = head[len(head) - len(lead) :]
    return tuple(0 if length == 1 else i for length, i in zip(lead, own, strict=True))


def column(xp: Namespace, first: int, count: int, like: Array) -> Array:
    """(count, 1) int64: as many positions from `first` on, beside `like`."""
    return row(xp, first, count, like)[0, :, None]


def row(xp: Namespace, first: int, count: int, like: Array) -> Array:
    """(1, count) int64: as many positions from `first` on, beside `like`."""
    if abs(first) > FURTHEST:
        raise ValueError(
            "query_offset must be at most 2^62 in size where every position counts, "
            f"got the position {first}"
        )
    return xp.arange(first, first + count, dtype=xp.int64, device=device(like))[None, :]


def make_positions(
    query: Array, offset: Any, batch: Head, queries: int, keys: int, needed_by: str | None
) -> Positions:
    """Check `query_offset`, which may be left out where Q = N or nothing goes by position."""
    if offset is not None:
        return Positions(check_lead_integers("query_offset", offset, query, batch))
    if needed_by is not None and queries != keys:
        raise ValueError(
            f"query_offset, the position of the first query, is required with {needed_by} when "
            f"the numbers of queries and keys differ, got {queries} queries and {keys} keys"
        )
    return Positions()


def check_lead_integers(name: str, given: Any, query: Array, batch: Head) -> int | np.ndarray:
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
