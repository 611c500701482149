"""Which keys a query may attend to: made for one chunk of queries at a time, never Q x N."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from topk_np._namespace import (
    Array,
    Namespace,
    array_namespace,
    check_broadcasts,
    check_device,
    check_integer,
    dtype_name,
    namespace_of,
)
from topk_np.kernels import engine
from topk_np.positions import (
    Head,
    Positions,
    check_lead_integers,
    column,
    of_head,
    of_lead,
    row,
)

PairFunction = Callable[[Array, Array], Array]  # of query positions (C, 1) and key positions (1, n)


@dataclass(frozen=True)
class Mask:
    """All that hides keys from queries, combined with *and*."""

    positions: Positions
    pairs: Array | PairFunction | None = None
    """
    Boolean, broadcastable to (..., Q, N), True where the query may attend; or a function of
    positions (C, 1) and (1, n) that gives as much for some of the pairs.
    """
    left: int | None = None
    """How many positions before its own a query sees; None: all, as for the next."""
    right: int | None = None
    """How many positions after its own a query sees: 0 in causal attention."""
    query_lengths: Any = None
    """How many of a head's queries there are, the others seeing nothing; None: all, as next."""
    key_lengths: Any = None
    """How many of a head's keys there are."""

    def visible(self, head: Head, rows: slice, keys: int) -> slice:
        """The keys, of so many, outside of which none of these queries sees any."""
        end = rows.stop
        if self.query_lengths is not None:
            end = min(end, of_lead(self.query_lengths, head))
        if self.key_lengths is not None:
            keys = min(keys, of_lead(self.key_lengths, head))
        first = self.positions.first(head, rows)
        start = 0 if self.left is None else first - self.left
        stop = keys if self.right is None else first + end - rows.start + self.right
        if end <= rows.start:
            stop = start
        start = max(0, min(keys, start))
        return slice(start, max(start, min(keys, stop)))

    def visible_to_all(self, head: Head, rows: slice, keys: int) -> slice:
        """Keys, of so many, that each of these queries sees, but for those that see nothing."""
        if self.pairs is not None:
            return slice(0, 0)
        if self.key_lengths is not None:
            keys = min(keys, of_lead(self.key_lengths, head))
        first = self.positions.first(head, rows)
        start = 0 if self.left is None else first + rows.stop - rows.start - 1 - self.left
        stop = keys if self.right is None else first + self.right + 1
        return slice(max(0, start), min(keys, stop))

    def hide(self, xp: Namespace, scores: Array, head: Head, rows: slice, keys: slice) -> Array:
        """Scores (C, n), our own to change, with -inf where a query may not attend to a key."""
        hide, count = engine(xp).hide, scores.shape[0]
        first = self.positions.first(head, rows)
        if callable(self.pairs):
            allowed = ask("mask", self.pairs, scores, first, keys)
            if dtype_name(allowed) != "bool":
                raise TypeError(f"mask must return a boolean array, got dtype {allowed.dtype}")
            scores = hide(scores, xp.broadcast_to(allowed, scores.shape))
        elif self.pairs is not None:
            scores = hide(scores, of_chunk(self.pairs, head, rows, keys))
        # The first query's outermost columns, as near to these keys as changes nothing: positions
        # may be too large for a kernel.
        columns = keys.stop - keys.start
        least, last = -count, columns
        if self.left is not None:
            least = max(-count, min(first - self.left - keys.start, columns))
        if self.right is not None:
            last = max(-count, min(first + self.right - keys.start, columns))
        if least + count > 1 or last < columns - 1:
            scores = engine(xp).hide_outside(scores, least, last)
        if self.key_lengths is not None and of_lead(self.key_lengths, head) < keys.stop:
            length = of_lead(self.key_lengths, head)
            scores = hide(scores, row(xp, keys.start, columns, scores) < length)
        if self.query_lengths is not None and of_lead(self.query_lengths, head) < rows.stop:
            length = of_lead(self.query_lengths, head)
            scores = hide(scores, column(xp, rows.start, count, scores) < length)
        return scores


def of_chunk(array: Array, head: Head, rows: slice, keys: slice) -> Array:
    """Some rows and columns of a head's matrix, (C or 1, n or 1), of an array over (..., Q, N)."""
    matrix = of_head(array, head)
    matrix = matrix[rows if matrix.shape[0] > 1 else slice(None), :]
    return matrix[:, keys if matrix.shape[1] > 1 else slice(None)]


def ask(name: str, function: PairFunction, scores: Array, first: int, keys: slice) -> Array:
    """What the option `name` says of the pairs of `scores` (C, n), queries from `first` on."""
    xp = array_namespace(scores)
    queries = column(xp, first, scores.shape[0], scores)
    said = function(queries, row(xp, keys.start, keys.stop - keys.start, scores))
    if said is None:
        raise TypeError(f"{name} must return an array, got None")
    namespace_of({"query": scores, f"what {name} returns": said})
    check_broadcasts(f"what {name} returns", tuple(said.shape), tuple(scores.shape), "(C, n)")
    return said


def make_mask(
    query: Array,
    positions: Positions,
    mask: Any,
    left: int | None,
    right: int | None,
    query_lengths: Any,
    key_lengths: Any,
    batch: Head,
    keys: int,
) -> Mask | None:
    """Check the mask options of an attention call; None if nothing is hidden."""
    queries = query.shape[-2]
    if mask is not None and not callable(mask):
        mask = _check_mask(query, mask, (*batch, queries, keys))
    query_lengths = _check_lengths("query_lengths", query_lengths, query, batch, queries)
    key_lengths = _check_lengths("key_lengths", key_lengths, query, batch, keys)
    hiding = (mask, left, right, query_lengths, key_lengths)
    return None if all(one is None for one in hiding) else Mask(positions, *hiding)


def _check_mask(query: Array, mask: Any, full: tuple[int, ...]) -> Array:
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
    if window is None:
        return None, None
    if not isinstance(window, (tuple, list)):
        raise TypeError(f"window must be a pair (left, right), got {type(window).__name__}")
    if len(window) != 2:
        raise ValueError(f"window must be a pair (left, right), got {len(window)} entries")
    left, right = (
        None if length is None else check_integer(f"window's {side}", length, least=0)
        for side, length in zip(("left", "right"), window, strict=True)
    )
    return left, right


def _check_lengths(name: str, given: Any, query: Array, batch: Head, most: int) -> Any:
    if given is None:
        return None
    lengths = check_lead_integers(name, given, query, batch)
    low, high = (
        (lengths,) * 2
        if isinstance(lengths, int)
        else (int(lengths.min(initial=most)), int(lengths.max(initial=0)))
    )
    if low < 0 or high > most:
        raise ValueError(f"{name} must be from 0 to {most}, got {low if low < 0 else high}")
    return lengths
