"""
Dropout that depends on a seed and the place of a weight alone.

Whether a weight is dropped is a pure function of the seed, the head, and the positions of query
and key, so that chunks and threads change nothing and the backward pass drops the same ones. The
function is the counter-based generator Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror and Shaw,
*Parallel Random Numbers: As Easy as 1, 2, 3*, 2011), in 32-bit integers that wrap around.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from topk_np._namespace import Array, array_namespace, check_integer, check_number
from topk_np.kernels import engine
from topk_np.options.chunk import Chunk, Option, Positions, Shape, over_heads

SEEDS = 2**64


@dataclass(frozen=True)
class Dropout:
    """A rate and a seed: which weights are dropped, by their place."""

    rate: float
    """The probability that a weight is dropped."""
    seed: int

    def factors(self, heads: Array, queries: Array, keys: Array, dtype: Any) -> Array:
        """
        0 where a weight is dropped, else 1 / (1 - rate).

        `heads` are flat indices over the leading axes, `queries` and `keys` positions; they
        broadcast, and are taken modulo 2^32.
        """
        xp = array_namespace(queries)
        heads, queries, keys = (xp.astype(n, xp.int32) for n in (heads, queries, keys))
        seed = signed(self.seed), signed(self.seed >> 32)
        # A key for each query first, then a random number for each of its keys.
        row = threefry(seed, (heads, queries))
        bits, _ = threefry(row, (keys, xp.zeros_like(keys)))
        kept = bits >= min(round(self.rate * 2**32), 2**32 - 1) - 2**31
        return xp.astype(kept, dtype) / (1 - self.rate)


@dataclass(frozen=True, eq=False)
class WeightDropout(Option):
    """Dropout of the weights of attention."""

    dropout: Dropout
    positions: Positions
    batch: Shape

    slot_matrices = 8  # random bits

    def factors(self, chunk: Chunk, indices: Array, dtype: Any) -> Array | None:
        """See `Option`."""
        first, axis, count = chunk.heads
        step = math.prod(self.batch[axis + 1 :])
        flat = int(np.ravel_multi_index(first, self.batch))
        heads = [flat + i * step for i in range(count)]
        return self.dropout.factors(
            over_heads(array_namespace(indices), heads, indices),
            Positions(self.positions.offset % 2**32).column(chunk, indices),
            indices,
            dtype,
        )


def threefry(key: tuple[Any, Any], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Threefry-2x32-20: two int32 of random bits for each key and counter, which broadcast."""
    return engine(array_namespace(*counter)).threefry(key, counter)  # type: ignore[no-any-return]


def signed(number: int) -> int:
    """An integer modulo 2^32, as those of int32 are."""
    return ((number + 2**31) & 0xFFFFFFFF) - 2**31


def make_dropout(dropout: Any) -> Dropout | None:
    """Check the option `dropout`, a pair (rate, seed); None where nothing is dropped."""
    if not isinstance(dropout, (tuple, list)):
        raise TypeError(f"dropout must be a pair (rate, seed), got {type(dropout).__name__}")
    if len(dropout) != 2:
        raise ValueError(f"dropout must be a pair (rate, seed), got {len(dropout)} entries")
    rate, seed = check_number("dropout's rate", dropout[0]), dropout[1]
    if not 0 <= rate < 1:
        raise ValueError(f"dropout's rate must be at least 0 and below 1, got {rate}")
    seed = check_integer("dropout's seed", seed, least=0)
    if seed >= SEEDS:
        raise ValueError(f"dropout's seed must be below 2^64, got {seed}")
    return Dropout(rate, seed) if rate > 0 else None
