"""Which keys a query may attend to: made for one chunk of queries at a time, never Q x N."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from array_api_compat import device

from topk_np._namespace import (
    Array,
    Namespace,
    array_namespace,
    check_device,
    check_flag,
    check_integer,
    dtype_name,
    namespace_of,
)
from topk_np.kernels import engine

Head = tuple[int, ...]  # the place of one head among the leading axes


MaskFunction = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Mask:
    """All that hides keys from queries, combined with *and*."""

    pairs: Array | MaskFunction | None
    """
    Boolean, broadcastable to (..., Q, N), True where the query may attend; or a function of
    positions (C, 1) and (1, n) that gives as much for some of the pairs.
    """
    left: int | None
    """How many positions before its own a query sees; None: all, as for the next."""
    right: int | None
    """How many positions after its own a query sees: 0 in causal attention."""
    offset: int | Array
    """The position of the first query: one for all, or an integer array over the leading axes."""

    def visible(self, head: Head, rows: slice, keys: int) -> slice:
        """The keys, of so many, outside of which none of these queries sees any."""
        offset = self._offset(head)
        start = 0 if self.left is None else rows.start + offset - self.left
        stop = keys if self.right is None else rows.stop + offset + self.right
        start = max(0, min(keys, start))
        return slice(start, max(start, min(keys, stop)))

    def hide(self, xp: Namespace, scores: Array, head: Head, rows: slice, keys: slice) -> Array:
        """Scores (C, n), our own to change, with -inf where a query may not attend to a key."""
        if callable(self.pairs):
            allowed = _ask(self.pairs, scores, rows.start + self._offset(head), keys)
            scores = engine(xp).hide(scores, allowed)
        elif self.pairs is not None:
            allowed = of_head(self.pairs, head)
            allowed = allowed[rows if allowed.shape[0] > 1 else slice(None), :]
            allowed = allowed[:, keys if allowed.shape[1] > 1 else slice(None)]
            scores = engine(xp).hide(scores, allowed)
        position, count = rows.start + self._offset(head), scores.shape[0]
        where = {"dtype": xp.int64, "device": device(scores)}
        # The first query's outermost key, as near to these keys as changes nothing: positions may
        # be too large for an array.
        if self.right is not None and position + self.right < keys.stop - 1:
            last = max(position + self.right, keys.start - count)
            lasts = xp.arange(last, last + count, **where)[:, None]
            key = xp.arange(keys.start, keys.stop, **where)[None, :]
            scores = engine(xp).hide(scores, key <= lasts)
        if self.left is not None and position + count - 1 - self.left > keys.start:
            first = min(position - self.left, keys.stop)
            firsts = xp.arange(first, first + count, **where)[:, None]
            key = xp.arange(keys.start, keys.stop, **where)[None, :]
            scores = engine(xp).hide(scores, key >= firsts)
        return scores

    def _offset(self, head: Head) -> int:
        if isinstance(self.offset, int):
            return self.offset
        return int(self.offset[own_place(self.offset.shape, head)])


def _ask(function: MaskFunction, scores: Array, first: int, keys: slice) -> Array:
    """What a function says of the pairs of `scores` (C, n), queries from position `first` on."""
    xp = array_namespace(scores)
    where = {"dtype": xp.int64, "device": device(scores)}
    query = xp.arange(first, first + scores.shape[0], **where)[:, None]
    allowed = function(query, xp.arange(keys.start, keys.stop, **where)[None, :])
    namespace_of({"query": scores, "what mask returns": allowed})
    if dtype_name(allowed) != "bool":
        raise TypeError(f"mask must return a boolean array, got dtype {allowed.dtype}")
    _check_broadcasts("what mask returns", tuple(allowed.shape), tuple(scores.shape), "(C, n)")
    return xp.broadcast_to(allowed, scores.shape)


def of_head(array: Array, head: Head) -> Array:
    """The last two axes of `array` at one head; its leading axes broadcast to the heads'."""
    return array[(*own_place(array.shape[:-2], head), slice(None), slice(None))]


def own_place(lead: tuple[int, ...], head: Head) -> Head:
    """The place of a head among leading axes that broadcast to the heads'."""
    own = head[len(head) - len(lead) :]
    return tuple(0 if length == 1 else i for length, i in zip(lead, own, strict=True))


def make_mask(
    query: Array,
    mask: Any,
    is_causal: Any,
    query_offset: Any,
    window: Any,
    batch: Head,
    queries: int,
    keys: int,
) -> Mask | None:
    """Check the mask options of an attention call; None if nothing is hidden."""
    if mask is not None and not callable(mask):
        mask = _check_mask(query, mask, (*batch, queries, keys))
    is_causal = check_flag("is_causal", is_causal)
    left, right = (None, None) if window is None else _check_window(window)
    if query_offset is not None:
        query_offset = _check_offset(query, query_offset, batch)
    elif (is_causal or window is not None or callable(mask)) and queries != keys:
        needs = "is_causal" if is_causal else "a mask function" if window is None else "window"
        raise ValueError(
            f"query_offset, the position of the first query, is required with {needs} when the "
            f"numbers of queries and keys differ, got {queries} queries and {keys} keys"
        )
    if is_causal:
        right = 0
    if mask is None and left is None and right is None:
        return None
    return Mask(mask, left, right, 0 if query_offset is None else query_offset)


def _check_mask(query: Array, mask: Any, full: tuple[int, ...]) -> Array:
    xp = namespace_of({"query": query, "mask": mask})
    check_device("mask", mask, "query", query)
    if dtype_name(mask) != "bool":
        raise TypeError(
            f"mask must be boolean, True where a query may attend, got dtype {mask.dtype}; "
            "terms to be added to the scores are a bias"
        )
    _check_broadcasts("mask", tuple(mask.shape), full, "(..., Q, N)")
    if mask.ndim < 2:
        mask = xp.reshape(mask, (1,) * (2 - mask.ndim) + tuple(mask.shape))
    return mask


def _check_window(window: Any) -> tuple[int | None, int | None]:
    if not isinstance(window, (tuple, list)):
        raise TypeError(f"window must be a pair (left, right), got {type(window).__name__}")
    if len(window) != 2:
        raise ValueError(f"window must be a pair (left, right), got {len(window)} entries")
    left, right = (
        None if length is None else check_integer(f"window's {side}", length, least=0)
        for side, length in zip(("left", "right"), window, strict=True)
    )
    return left, right


def _check_offset(query: Array, offset: Any, batch: Head) -> int | Array:
    if getattr(offset, "shape", ()) == ():
        return check_integer("query_offset", offset)
    namespace_of({"query": query, "query_offset": offset})
    check_device("query_offset", offset, "query", query)
    if "int" not in dtype_name(offset):
        raise TypeError(
            "query_offset must be an integer or an integer array, "
            f"got an array of dtype {offset.dtype}"
        )
    _check_broadcasts("query_offset", tuple(offset.shape), batch, "(...)")
    return offset


def _check_broadcasts(
    name: str, shape: tuple[int, ...], full: tuple[int, ...], legend: str
) -> None:
    fits = len(shape) <= len(full) and all(
        own in (1, whole) for own, whole in zip(shape[::-1], full[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"{name} must broadcast to {legend}, here {full}, got shape {shape}")
