"""
The work on one block of queries and one block of keys, on NumPy arrays.

What is kept of a block of queries is `Best`: scores and indices of up to K keys a query, ascending
among all keys. The best of a union is the best of the bests, so blocks of keys merge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import compute_dtype
from topk_np.attention import topk_attention_fwd
from topk_np.kernels import Engine, engine
from topk_np.selection import top_k

Block = np.ndarray[Any, Any]

ops: Engine = engine(np)


class Best(NamedTuple):
    """The keys that some queries keep."""

    scores: Block
    """(..., C, K), -inf in unused slots."""
    indices: Block
    """(..., C, K) int64, ascending; -1 in unused slots, which come last."""


def best_of(
    query: Block, key: Block, mask: Block | None, first: int, slots: int, options: Any
) -> Best:
    """The best keys of one block, (..., n, D), whose first one is key number `first`."""
    nothing = key[..., :0]  # values of no width: what matters are the scores
    _, kept = topk_attention_fwd(
        query, key, nothing, k=max(slots, 1), mask=mask, workers=1, **options
    )
    indices = np.where(kept.indices < 0, -1, kept.indices.astype(np.int64) + first)
    unused = [(0, 0)] * (indices.ndim - 1) + [(0, slots - indices.shape[-1])]
    return Best(
        np.pad(kept.scores, unused, constant_values=-np.inf),
        np.pad(indices, unused, constant_values=-1),
    )


def merge(parts: Sequence[Best]) -> Best:
    """The best of several blocks of keys, given in the order of their keys."""
    scores = np.concatenate([part.scores for part in parts], axis=-1)
    indices = np.concatenate([part.indices for part in parts], axis=-1)
    # Columns are in the order of keys, so that the lower index wins among equals here as well.
    columns = top_k(scores, parts[0].scores.shape[-1], sorted=False).indices
    kept = np.take_along_axis(indices, columns, axis=-1)
    order = np.argsort(np.where(kept < 0, np.iinfo(np.int64).max, kept), axis=-1, kind="stable")
    columns = np.take_along_axis(columns, order, axis=-1)
    return Best(
        np.take_along_axis(scores, columns, axis=-1), np.take_along_axis(indices, columns, axis=-1)
    )


def weights_of(best: Best) -> Block:
    """The softmax (..., C, K) of what was kept."""
    weights: Block = ops.softmax(best.scores)
    return weights


def within(best: Best, matrix: Block, first: int, count: int) -> tuple[Block, Block]:
    """A (..., C, K) matrix of slots with those of some keys in front: it, and their places."""
    inside = (best.indices >= first) & (best.indices < first + count)
    front = np.argsort(~inside, axis=-1, kind="stable")
    indices = np.take_along_axis(np.where(inside, best.indices - first, -1), front, axis=-1)
    return np.take_along_axis(matrix, front, axis=-1), indices.astype(np.int32)


def gather(weights: Block, best: Best, rows: Block, first: int) -> Block:
    """(..., C, V): the kept weights times `rows` (..., n, V), those of one block of keys."""
    rows = rows.astype(compute_dtype(np, rows), copy=False)
    stacks = map(_stack, (*within(best, weights, first, rows.shape[-2]), rows))
    weights, indices, values = stacks
    out: Block = ops.gather_matmul(weights, ops.pattern(indices, values.shape[1]), values)
    return out.reshape(*rows.shape[:-2], *out.shape[1:])


def sample(rows: Block, values: Block, best: Best, first: int) -> Block:
    """(..., C, K): ``rows . values`` (..., n, V) in the slots of that block of keys, else 0."""
    dtype = compute_dtype(np, rows)
    inside = (best.indices >= first) & (best.indices < first + values.shape[-2])
    _, indices = within(best, best.scores, first, values.shape[-2])
    given = rows.astype(dtype, copy=False), values.astype(dtype, copy=False)
    pattern = ops.pattern(_stack(indices), values.shape[-2])
    found = ops.sampled_matmul(*map(_stack, given), pattern).reshape(indices.shape)
    out = np.zeros(best.scores.shape, dtype)
    # Slots of the block stand together, in order: they go back to where they came from.
    out[inside] = found[indices >= 0]
    return out


def scatter(weights: Block, best: Best, rows: Block, first: int, count: int) -> Block:
    """(..., count, D): the transposed kept weights times `rows`, for one block of keys."""
    rows = rows.astype(weights.dtype, copy=False)
    front, indices = map(_stack, within(best, weights, first, count))
    out = np.zeros((front.shape[0], count, rows.shape[-1]), weights.dtype)
    out = ops.scatter_matmul(front, ops.pattern(indices, count), _stack(rows), out)
    scattered: Block = out.reshape(*rows.shape[:-2], *out.shape[1:])
    return scattered


def scores_vjp(best: Best, weights: Block, dweights: Block, softcap: float | None) -> Block:
    """The gradient (..., C, K) with respect to the products of queries and keys, not scaled."""
    dscores: Block = ops.softmax_vjp(weights, dweights)
    if softcap is not None:
        used = best.indices >= 0
        dscores = np.where(used, dscores * (1 - (best.scores / softcap) ** 2), 0)
    return dscores


def total(parts: Sequence[Block]) -> Block:
    """The sum of some blocks."""
    return sum(parts[1:], start=parts[0])


def _stack(blocks: Block) -> Block:
    """(G, n, ·): the matrices of all heads."""
    return blocks.reshape(math.prod(blocks.shape[:-2]), *blocks.shape[-2:])
