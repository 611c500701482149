"""Which keys a query may attend to: made for one chunk of queries at a time, never Q x N."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import device

from topk_np._namespace import (
    Array,
    Namespace,
    check_device,
    check_flag,
    check_integer,
    dtype_name,
    namespace_of,
)
from topk_np.kernels import engine

Head = tuple[int, ...]  # the place of one head among the leading axes


@dataclass(frozen=True)
class Mask:
    """All that hides keys from queries, combined with *and*."""

    array: Array | None
    """Boolean, broadcastable to (..., Q, N); True where the query may attend."""
    is_causal: bool
    offset: int | Array
    """The position of the first query: one for all, or an integer array over the leading axes."""

    def visible(self, head: Head, rows: slice, keys: int) -> int:
        """How many of the keys, from the first on, any of these queries may attend to at most."""
        if not self.is_causal:
            return keys
        return max(0, min(keys, int(rows.stop) + self._offset(head)))

    def hide(self, xp: Namespace, scores: Array, head: Head, rows: slice, keys: slice) -> Array:
        """Scores (C, n), our own to change, with -inf where a query may not attend to a key."""
        if self.array is not None:
            allowed = of_head(self.array, head)
            allowed = allowed[rows if allowed.shape[0] > 1 else slice(None), :]
            allowed = allowed[:, keys if allowed.shape[1] > 1 else slice(None)]
            scores = engine(xp).hide(scores, allowed)
        if self.is_causal:
            # Before -C no query sees anything, however far before.
            first = max(rows.start + self._offset(head), -scores.shape[0])
            if keys.stop - 1 > first:
                where = {"dtype": xp.int64, "device": device(scores)}
                query = xp.arange(first, first + scores.shape[0], **where)[:, None]
                key = xp.arange(keys.start, keys.stop, **where)[None, :]
                scores = engine(xp).hide(scores, key <= query)
        return scores

    def _offset(self, head: Head) -> int:
        if isinstance(self.offset, int):
            return self.offset
        return int(self.offset[own_place(self.offset.shape, head)])


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
    batch: Head,
    queries: int,
    keys: int,
) -> Mask | None:
    """Check the mask options of an attention call; None if nothing is hidden."""
    if mask is not None:
        mask = _check_mask(query, mask, (*batch, queries, keys))
    is_causal = check_flag("is_causal", is_causal)
    if query_offset is not None:
        query_offset = _check_offset(query, query_offset, batch)
    elif is_causal and queries != keys:
        raise ValueError(
            "query_offset, the position of the first query, is required with is_causal when the "
            f"numbers of queries and keys differ, got {queries} queries and {keys} keys"
        )
    if mask is None and not is_causal:
        return None
    return Mask(mask, is_causal, 0 if query_offset is None else query_offset)


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
