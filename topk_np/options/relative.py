"""
Biases by the distance of a key from its query: ALiBi and T5's, and their gradients.

Such a bias has one value on each diagonal of a chunk, so that C + n values make a chunk (C, n).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import device

from topk_np._namespace import (
    FLOATS,
    Array,
    array_namespace,
    cast,
    check_broadcasts,
    check_flag,
    check_floats,
    check_integer,
    check_ndim,
    dtype_name,
    namespace_of,
    plain,
    to_numpy,
)
from topk_np.kernels import Engine
from topk_np.options.chunk import Chunk, Option, Positions, Shape, row


@dataclass(frozen=True, eq=False)
class ALiBi:
    """
    Attention with linear biases: ``-slope |i - j|`` for a query at position i and key j.

    Parameters
    ----------
    slopes : array
        Floating, one for each head: (H,), or any shape that broadcasts to the leading axes of the
        call. They get no gradient.

    See Also
    --------
    T5Bias : a learned value for each range of distances.

    Notes
    -----
    Source: Press, Smith and Lewis, *Train Short, Test Long*, 2022, section 3, arXiv:2108.12409.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import ALiBi, dense_attention
    >>> ALiBi.of_heads(4).slopes
    array([0.25      , 0.0625    , 0.015625  , 0.00390625])
    >>> x = np.zeros((2, 3, 1))
    >>> dense_attention(x, x, np.eye(3), bias=ALiBi(np.array([0.0, 100.0]))).round(2)
    array([[[0.33, 0.33, 0.33],
            [0.33, 0.33, 0.33],
            [0.33, 0.33, 0.33]],
    <BLANKLINE>
           [[1.  , 0.  , 0.  ],
            [0.  , 1.  , 0.  ],
            [0.  , 0.  , 1.  ]]])
    """

    slopes: Array

    @classmethod
    def of_heads(cls, heads: int) -> ALiBi:
        """With the paper's slopes: 2^(-8/H), 2^(-16/H), ... for H heads, a power of two."""
        heads = check_integer("heads", heads, least=1)
        power = 1 << (heads.bit_length() - 1)
        exponents = [8 * (i + 1) / power for i in range(power)]
        exponents += [4 * (i + 1) / power for i in range(0, 2 * power, 2)][: heads - power]
        return cls(np.exp2(-np.asarray(exponents)))


@dataclass(frozen=True, eq=False)
class T5Bias:
    """
    Relative position buckets: a learned value for each range of distances j - i, and each head.

    The nearest distances have a bucket each; further ones share, in ranges that grow with the
    distance; those from `max_distance` on share the last.

    Parameters
    ----------
    table : array (B, H)
        The value of each of B buckets for each head, of the inputs' library and dtype; behind B
        any axes that broadcast to the leading axes of the call. Its gradient is `grads.bias`.
    bidirectional : bool, default True
        Half of the buckets for keys after the query, as in T5's encoder; if False, all later keys
        share the bucket of distance 0, as in its decoder.
    max_distance : int, default 128
        Distances of at least this share the last bucket.

    Notes
    -----
    T5 scales no scores: pass ``scale=1.0``. Source: Raffel et al., *Exploring the Limits of
    Transfer Learning*, 2020, section 2.1, arXiv:1910.10683.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import T5Bias, dense_attention_bwd, dense_attention_fwd
    >>> x = np.eye(3)[None]
    >>> bias = T5Bias(np.zeros((4, 1)), max_distance=8)
    >>> out, residuals = dense_attention_fwd(x, x, x, bias=bias, scale=1.0)
    >>> dense_attention_bwd(residuals, x).bias.shape
    (4, 1)
    """

    table: Array
    bidirectional: bool = True
    max_distance: int = 128


@dataclass(frozen=True, eq=False)
class SlopeBias(Option):
    """An `ALiBi`, checked."""

    slopes: np.ndarray
    """Over the batch axes."""
    positions: Positions

    def scores(self, scores: Array, chunk: Chunk, keys: slice, ops: Engine) -> Array:
        """See `Option`."""
        xp = array_namespace(scores)
        own = self.slopes[chunk.heads.within(self.slopes.shape)]
        slopes = xp.asarray(own.tolist(), dtype=scores.dtype, device=device(scores))[:, None]
        distances = xp.abs(_diagonals(self.positions, scores, chunk, keys))
        scores += ops.toeplitz(-slopes * xp.astype(distances, scores.dtype), chunk.queries)
        return scores


@dataclass(frozen=True, eq=False)
class TableBias(Option):
    """A `T5Bias`, checked."""

    array: Array
    """(*batch or 1s, B, 1)"""
    positions: Positions
    bidirectional: bool
    exact: int
    """The distances 0, 1, ... that have a bucket of their own."""
    starts: tuple[int, ...]
    """The distances from which on the further ones have their second, third, ... bucket."""
    heads: Shape
    """The axes of the table after its first, as the caller gave them."""

    slot_matrices = 8  # buckets
    held_matrices = 1
    gradient = "bias"

    def scores(self, scores: Array, chunk: Chunk, keys: slice, ops: Engine) -> Array:
        """See `Option`."""
        xp = array_namespace(scores)
        table = cast(xp, chunk.stack(self.array), scores.dtype)
        buckets = self.buckets(_diagonals(self.positions, scores, chunk, keys))
        own = [buckets[g if buckets.shape[0] > 1 else 0, ...] for g in range(table.shape[0])]
        values = [xp.take(table[g, :, 0], places) for g, places in enumerate(own)]
        scores += ops.toeplitz(xp.stack(values), chunk.queries)
        return scores

    def add_gradients(
        self, grads: Any, chunk: Chunk, dkept: Array, indices: Array, ops: Engine
    ) -> None:
        """See `Option`."""
        xp, where = array_namespace(dkept), {"dtype": dkept.dtype, "device": device(dkept)}
        distances = xp.astype(indices, xp.int64) - self.positions.column(chunk, dkept)
        buckets = xp.astype(self.buckets(distances), xp.int32)
        # Many slots of a row may share a bucket: a row each.
        heads, count = dkept.shape[0], self.array.shape[-2]
        slots = (heads, dkept.shape[1] * dkept.shape[2], 1)
        total = ops.scatter_matmul(
            xp.reshape(dkept, slots),
            ops.pattern(xp.reshape(buckets, slots), count),
            xp.ones(slots, **where),
            xp.zeros((heads, count, 1), **where),
        )
        grads.add_rows("bias", 0, total)

    def add_dense_gradients(self, grads: Any, chunk: Chunk, keys: slice, dscores: Array) -> None:
        """See `Option`."""
        xp = array_namespace(dscores)
        key = row(xp, keys.start, dscores.shape[2], dscores)
        buckets = self.buckets(key - self.positions.column(chunk, dscores))
        sums = [
            xp.sum(xp.where(buckets == bucket, dscores, 0.0), axis=(1, 2))
            for bucket in range(self.array.shape[-2])
        ]
        grads.add_rows("bias", 0, xp.stack(sums, axis=1)[..., None])

    def own_gradient(self, total: Array) -> Array:
        """See `Option`."""
        xp = array_namespace(total)
        return xp.moveaxis(xp.reshape(total, (*self.heads, total.shape[-2])), -1, 0)

    def buckets(self, distances: Array) -> Array:
        """The bucket of each distance j - i."""
        xp = array_namespace(distances)
        later = distances > 0
        sizes = xp.where(later, distances if self.bidirectional else 0, -distances)
        buckets = xp.where(sizes < self.exact, sizes, self.exact)
        for start in self.starts:
            buckets = buckets + xp.astype(sizes >= start, buckets.dtype)
        if not self.bidirectional:
            return buckets
        return xp.where(later, buckets + self.array.shape[-2] // 2, buckets)


def _diagonals(positions: Positions, scores: Array, chunk: Chunk, keys: slice) -> Array:
    """(G or 1, C - 1 + n): the distances j - i of the diagonals of scores, lower left first."""
    xp, (_, count, length) = array_namespace(scores), scores.shape
    heads = [
        row(xp, keys.start - first - count + 1, count - 1 + length, scores)
        for first in positions.first(chunk)
    ]
    return heads[0] if len(heads) == 1 else xp.concat(heads, axis=0)


def make_slope_bias(bias: ALiBi, positions: Positions, lead: Shape) -> SlopeBias:
    """Check an `ALiBi`."""
    if bias.slopes is None:
        raise TypeError("bias.slopes must be an array, got None")
    namespace_of({"bias.slopes": bias.slopes})
    if dtype_name(bias.slopes) not in FLOATS:
        raise TypeError(f"bias.slopes must be floating, got dtype {bias.slopes.dtype}")
    check_broadcasts("bias.slopes", tuple(bias.slopes.shape), lead, "(...)")
    return SlopeBias(to_numpy(bias.slopes), positions)


def make_table_bias(query: Array, bias: T5Bias, positions: Positions, lead: Shape) -> TableBias:
    """Check a `T5Bias`."""
    xp = check_floats({"query": query, "bias.table": bias.table})
    check_ndim("bias.table", bias.table, 1, "(B, H)")
    buckets, *heads = bias.table.shape
    check_broadcasts("bias.table", (*heads,), lead, "(B, ...)")
    bidirectional = check_flag("bias.bidirectional", bias.bidirectional)
    ways = 2 if bidirectional else 1
    half = buckets // ways
    if half < 2:
        raise ValueError(f"bias.table must have at least {2 * ways} buckets, got {buckets}")
    exact = half // 2
    furthest = check_integer("bias.max_distance", bias.max_distance, least=exact + 1)
    if furthest >= 2**31:
        raise ValueError(f"bias.max_distance must be below 2^31, got {furthest}")
    # Of n further buckets, b starts where log(distance / exact) / log(furthest / exact) is b / n.
    n = half - exact
    starts = tuple(
        bisect_left(range(furthest), exact ** (n - b) * furthest**b, key=lambda size: size**n)
        for b in range(1, n)
    )
    table = xp.moveaxis(plain(bias.table), 0, -1)[..., None]
    return TableBias(table, positions, bidirectional, exact, starts, (*heads,))
