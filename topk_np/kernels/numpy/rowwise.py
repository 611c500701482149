"""Operations on each score, or on each row of scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels import portable
from topk_np.kernels.numpy.hits import by_row, raveled, row_gap

# Up to this exponent, and from this total on, a softmax need not take off the largest first.
MOST_EXPONENT, LEAST_TOTAL = 40.0, math.exp(-40)


def hide(scores: Array, allowed: Array) -> Array:
    """`scores` (G, C, n), set to -inf in place where `allowed`, which broadcasts, is False."""
    if allowed.size == scores.size:
        np.copyto(scores, -np.inf, where=~allowed)
        return scores
    # fmin passes over the NaN of what is allowed, and broadcasts six times as quickly as copyto.
    number = scores.dtype.type
    return np.fmin(scores, np.where(allowed, number(np.nan), number(-np.inf)), out=scores)


def hide_outside(scores: Array, first: Any, last: Any) -> Array:
    """`scores` (G, C, n), -inf in place where not ``first + i <= column <= last + i`` in row i."""
    if not isinstance(first, int):
        return portable.hide_outside(scores, first, last)  # edges of each head: of short ones
    rows, columns = scores.shape[1:]
    row, column = np.arange(rows)[:, None], np.arange(columns)
    # Columns that are hidden from all rows, and the squares that the edges of the band run through.
    before, begun, last_one, after = np.clip(
        [first, first + rows, last + 1, last + rows], 0, columns
    )
    scores[..., :before] = -np.inf
    scores[..., after:] = -np.inf
    for edge, hidden in (
        (slice(before, begun), column[before:begun] < first + row),
        (slice(last_one, after), column[last_one:after] > last + row),
    ):
        if hidden.size:
            hide(scores[..., edge], ~hidden)
    return scores


def tanh(scores: Array) -> Array:
    """The hyperbolic tangent of `scores`, in place."""
    return np.tanh(scores, out=scores)


def toeplitz(diagonals: Array, rows: int) -> Array:
    """(G, rows, n): a view of ``diagonals`` (G, rows - 1 + n), from the lower left one on."""
    columns = diagonals.shape[1] - rows + 1
    return np.lib.stride_tricks.sliding_window_view(diagonals, columns, axis=1)[:, ::-1]


def softmax(scores: Array) -> Array:
    """Row-wise softmax; a row without allowed scores is all 0."""
    if scores.size == 0:
        return scores
    rows = scores.reshape(-1, scores.shape[-1])
    ones = np.ones((rows.shape[1], 1), scores.dtype)
    if rows.max() < MOST_EXPONENT:  # not with NaN
        weights = np.exp(rows)
        total = weights @ ones
        if total.min() > LEAST_TOTAL:
            weights /= total
            return weights.reshape(scores.shape)
    # Too large or too small for exp: the largest of each row is taken off.
    largest = rows.max(axis=1, keepdims=True)
    largest[largest == -np.inf] = 0
    weights = rows - largest
    np.exp(weights, out=weights)
    total = weights @ ones
    total[total == 0] = 1
    weights /= total
    return weights.reshape(scores.shape)


def softmax_vjp(weights: Array, dweights: Array) -> Array:
    """``weights * (dweights - sum(weights * dweights))``, row by row."""
    dscores = (weights * dweights).reshape(-1, max(weights.shape[-1], 1))
    total = dscores @ np.ones((dscores.shape[1], 1), dscores.dtype)
    np.subtract(dweights.reshape(dscores.shape), total, out=dscores)
    dscores = dscores.reshape(weights.shape)
    dscores *= weights
    return dscores


def relu(scores: Array) -> Array:
    """`scores` where they are above 0, or NaN; a masked score is neither."""
    return np.maximum(scores, 0)


def relu_vjp(scores: Array, dweights: Array) -> Array:
    """`dweights` where the score is above 0, or NaN."""
    product = dweights * ~(scores <= 0)  # eight times as fast, as long as nothing times 0 is NaN
    return product if np.isfinite(np.sum(product)) else np.where(scores <= 0, 0, dweights)


def erf(x: Array) -> Array:
    """The error function."""
    from scipy.special import erf  # takes a while to import

    return erf(x)


def zero_hidden(matrix: Array, scores: Array) -> Array:
    """`matrix` (G, C, n), but 0 where the score is -inf, unless that is finite everywhere."""
    flat = matrix.reshape(-1)
    if math.isfinite(np.vdot(flat, flat)):
        return matrix
    return np.where(scores == -np.inf, 0, matrix)


def take_slots(matrix: Array, indices: Array) -> Array:
    """(G, C, K): ``matrix[g, i, indices[g, i, j]]``, 0 in unused slots."""
    heads, rows, columns = matrix.shape
    if indices.size == 0 or columns == 0:
        return np.zeros(indices.shape, matrix.dtype)
    matrix = by_row(matrix.reshape(heads * rows, columns))
    starts = np.arange(heads * rows) * (columns + row_gap(matrix))
    taken = raveled(matrix)[indices + starts.reshape(heads, rows, 1)]
    if indices.min() < 0:
        taken[indices < 0] = 0
    return taken
