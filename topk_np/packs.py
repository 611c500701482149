"""
Packs: short heads that are taken together, as stacks of matrices.

One by one, a head of 48 queries and keys would cost more calls of Python than arithmetic. What
dense and top-k attention need of a pack is here; the masks are those that a batch of padded
sequences needs.
"""

from __future__ import annotations

import math

import numpy as np

from topk_np._namespace import Array
from topk_np.positions import Head, of_lead
from topk_np.problem import Problem


def matrices(array: Array, batch: Head, heads: slice) -> Array:
    """(G, n, ·): the matrices of some heads, of a NumPy array whose leading axes broadcast."""
    *lead, rows, width = array.shape
    if tuple(lead) == batch and array.flags.c_contiguous:
        return array.reshape(math.prod(batch), rows, width)[heads]
    if not batch:
        return np.ascontiguousarray(array)[None]
    whole = np.broadcast_to(array, (*batch, rows, width))
    places = np.unravel_index(np.arange(heads.start, heads.stop), batch)
    return np.ascontiguousarray(whole[places])


def of_heads(numbers: int | np.ndarray, batch: Head, heads: slice) -> np.ndarray:
    """(G,): the numbers of some heads, of one for all or an array over the leading axes."""
    return np.broadcast_to(numbers, batch).reshape(-1)[heads]


def allowed_pairs(problem: Problem, heads: slice) -> tuple[np.ndarray | None, int]:
    """
    Which keys queries may attend to, and n, the keys that any of these queries sees, at least 1.

    (G or 1, Q or 1, n) bool; None if they may attend to all.
    """
    mask, keys = problem.mask, problem.keys
    if mask is None:
        return None, keys
    key_lengths, query_lengths = (
        None if lengths is None else of_heads(lengths, problem.batch, heads)
        for lengths in (mask.key_lengths, mask.query_lengths)
    )
    if key_lengths is not None:
        keys = max(1, int(key_lengths.max()))
    allowed = np.ones((1, 1, keys), bool)
    column, row = np.arange(keys), np.arange(problem.queries)[:, None]
    first = of_lead(problem.positions.offset, ())

    def edge(position: int) -> np.ndarray:
        # As near to the keys as changes nothing: positions may be too large for an array.
        return row + max(-problem.queries, min(position, keys))

    if mask.left is not None:
        allowed = allowed & (column >= edge(first - mask.left))
    if mask.right is not None:
        allowed = allowed & (column <= edge(first + mask.right))
    if key_lengths is not None:
        allowed = allowed & (column < key_lengths[:, None, None])
    if query_lengths is not None:
        allowed = allowed & (row < query_lengths[:, None, None])
    return allowed, keys
