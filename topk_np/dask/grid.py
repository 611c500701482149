"""The grid of blocks: how arrays are cut, which blocks meet, how results come together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
from dask import delayed

from topk_np.dask import blocks

JOINED_AT_ONCE = 4  # blocks: the branches of the tree in which results come together


@dataclass(frozen=True)
class Grid:
    """The blocks of an array (..., n, d) that is whole along its last axis."""

    lead: tuple[tuple[int, ...], ...]
    """Sizes of the blocks along the leading axes."""
    sizes: tuple[int, ...]
    """Rows of each block."""
    starts: tuple[int, ...]
    """The first row of each block."""
    delayed: np.ndarray[Any, Any]
    """Blocks, over the leading axes and that of rows."""

    @classmethod
    def of(cls, array: da.Array) -> Grid:
        """That of an array."""
        *lead, sizes, _ = array.chunks
        starts = tuple(accumulate(sizes, initial=0))[:-1]
        return cls(tuple(lead), sizes, starts, array.to_delayed()[..., 0])

    def block(self, place: tuple[int, ...], i: int) -> Any:
        """Block `i` of the heads at a place among the leading axes."""
        return self.delayed[(*place, i)]

    def those(self, chosen: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
        """Number and first row of the blocks that are chosen, the first one if none is."""
        return [(i, self.starts[i]) for i in np.flatnonzero(chosen).tolist() or [0]]

    def map(self, function: Callable[[tuple[int, ...], int], Any]) -> dict[tuple[int, ...], Any]:
        """Call a function with each place among the leading axes and each number of a block."""
        return {at: function(at[:-1], at[-1]) for at in np.ndindex(self.delayed.shape)}

    def assemble(
        self, made: dict[tuple[int, ...], Any], width: tuple[int, ...], dtype: Any
    ) -> da.Array:
        """An array with these blocks, as many rows as ours, and the last axis of a given width."""

        def nested(at: tuple[int, ...]) -> Any:
            if len(at) < self.delayed.ndim:
                return [nested((*at, i)) for i in range(self.delayed.shape[len(at)])]
            *lead, rows = (sizes[i] for sizes, i in zip((*self.lead, self.sizes), at, strict=True))
            return [da.from_delayed(made[at], (*lead, rows, *width), dtype)]

        return da.block(nested(()))


def meeting(
    queries: Grid, keys: Grid, offset: int, left: int | None, right: int | None
) -> np.ndarray[Any, Any]:
    """The blocks of keys that each block of queries may attend to, as far as positions say."""
    first = np.array(queries.starts, object)[:, None] + offset  # of any size
    last = first + np.array(queries.sizes, object)[:, None] - 1
    start = np.array(keys.starts, object)
    stop = start + np.array(keys.sizes, object)
    meets = np.ones((len(queries.starts), len(keys.starts)), bool)
    if left is not None:
        meets &= (stop > first - left).astype(bool)
    if right is not None:
        meets &= (start <= last + right).astype(bool)
    return meets


def tree(join: Callable[[Sequence[Any]], Any], parts: Sequence[Any]) -> Any:
    """All parts as one, joined some neighbours at a time."""
    while len(parts) > 1:
        parts = [join(parts[i : i + JOINED_AT_ONCE]) for i in range(0, len(parts), JOINED_AT_ONCE)]
    return parts[0]


def total(parts: Sequence[Any], dtype: Any = None) -> Any:
    """The sum of some blocks, in another dtype if one is given."""
    whole = tree(delayed(blocks.total), parts)
    return whole if dtype is None else whole.astype(dtype)
