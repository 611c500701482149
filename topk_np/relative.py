"""
Biases by the distance of a key from its query: ALiBi and T5's, and their gradients.

Such a bias has one value on each diagonal of a chunk, so that C + n values make a chunk (C, n).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

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
    is_numpy,
    namespace_of,
    plain,
    to_numpy,
)
from topk_np.positions import Head, Positions, column, of_head, own_place, row
from topk_np.rowsparse import scatter_matmul
from topk_np.terms import RowsTerm, Term


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
        From where on all distances share a bucket.

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


@dataclass(frozen=True)
class SlopeBias:
    """An `ALiBi`, checked."""

    slopes: np.ndarray
    positions: Positions

    def values(self, scores: Array, head: Head, rows: slice, keys: slice) -> Array:
        """(C, n): what is to be added to some scores."""
        xp = array_namespace(scores)
        slope = float(self.slopes[own_place(self.slopes.shape, head)])
        return _by_distance(
            scores,
            keys.start - self.positions.first(head, rows),
            lambda distances: -slope * xp.astype(xp.abs(distances), scores.dtype),
        )


@dataclass(frozen=True)
class TableBias:
    """A `T5Bias`, checked."""

    array: Array
    """(*heads, B, 1)"""
    positions: Positions
    bidirectional: bool
    exact: int
    """The distances 0, 1, ... that have a bucket of their own."""
    starts: tuple[int, ...]
    """The distances from which on the further ones have their second, third, ... bucket."""

    def values(self, scores: Array, head: Head, rows: slice, keys: slice) -> Array:
        """(C, n): what is to be added to some scores."""
        first = self.positions.first(head, rows)
        own = cast(array_namespace(scores), of_head(self.array, head)[:, 0], scores.dtype)
        return _by_distance(
            scores, keys.start - first, lambda distances: _take(own, self.buckets(distances))
        )

    def slots_term(
        self, head: Head, rows: slice, dscores: Array, indices: Array, counts: Array
    ) -> Term:
        """The gradient of `array`, from that of the kept scores (C, K)."""
        xp, place = array_namespace(dscores), device(dscores)
        first = self.positions.first(head, rows)
        query = column(xp, first, dscores.shape[0], dscores)
        buckets = self.buckets(xp.astype(indices, xp.int64) - query)
        # Many slots of a row may share a bucket: a row each.
        slots = (buckets.shape[0] * buckets.shape[1], 1)
        total = scatter_matmul(
            xp.reshape(dscores, slots),
            xp.reshape(xp.astype(buckets, xp.int32), slots),
            xp.ones(slots[0], dtype=xp.int32, device=place),
            xp.ones(slots, dtype=dscores.dtype, device=place),
            xp.zeros((self.array.shape[-2], 1), dtype=dscores.dtype, device=place),
        )
        return RowsTerm(total, 0)

    def dense_term(self, head: Head, rows: slice, keys: slice, dscores: Array) -> Term:
        """The gradient of `array`, from that of the scores (C, n)."""
        xp = array_namespace(dscores)
        query = column(xp, self.positions.first(head, rows), dscores.shape[0], dscores)
        buckets = self.buckets(row(xp, keys.start, dscores.shape[1], dscores) - query)
        sums = [
            xp.sum(xp.where(buckets == bucket, dscores, 0.0))
            for bucket in range(self.array.shape[-2])
        ]
        return RowsTerm(xp.stack(sums)[:, None], 0)

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

    def grads(self, total: Array) -> Array:
        """The gradient in the shape that the caller gave."""
        return array_namespace(total).moveaxis(total[..., 0], -1, 0)


def _by_distance(scores: Array, first: int, values: Callable[[Array], Array]) -> Array:
    """(C, n), like `scores`: a value for each distance j - i, which is `first` at the top left."""
    xp, (count, length) = array_namespace(scores), scores.shape
    diagonals = values(row(xp, first - count + 1, count - 1 + length, scores)[0, :])
    if is_numpy(xp):
        return np.lib.stride_tricks.sliding_window_view(diagonals, length)[::-1]
    return _take(diagonals, row(xp, count - 1, length, scores) - column(xp, 0, count, scores))


def _take(values: Array, places: Array) -> Array:
    """``values[places]`` of a vector, in the shape of `places`."""
    xp = array_namespace(values)
    return xp.reshape(xp.take(values, xp.reshape(places, (-1,))), places.shape)


def make_slope_bias(bias: ALiBi, positions: Positions, batch: Head) -> SlopeBias:
    """Check an `ALiBi`."""
    if bias.slopes is None:
        raise TypeError("bias.slopes must be an array, got None")
    namespace_of({"bias.slopes": bias.slopes})
    if dtype_name(bias.slopes) not in FLOATS:
        raise TypeError(f"bias.slopes must be floating, got dtype {bias.slopes.dtype}")
    check_broadcasts("bias.slopes", tuple(bias.slopes.shape), batch, "(...)")
    return SlopeBias(to_numpy(bias.slopes), positions)


def make_table_bias(query: Array, bias: T5Bias, positions: Positions, batch: Head) -> TableBias:
    """Check a `T5Bias`."""
    xp = check_floats({"query": query, "bias.table": bias.table})
    check_ndim("bias.table", bias.table, 1, "(B, H)")
    buckets, *heads = bias.table.shape
    check_broadcasts("bias.table", (*heads,), batch, "(B, ...)")
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
    return TableBias(table, positions, bidirectional, exact, starts)
