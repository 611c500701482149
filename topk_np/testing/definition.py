"""
Attention by its definition, in float64 with every score of every query: what others are held to.

It is written for reading and shares no code with the rest of the package.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from topk_np.options.relative import T5Bias
from topk_np.testing.biases import in_bucket
from topk_np.testing.close import EPSILON
from topk_np.testing.problems import AttentionProblem


class Solution(NamedTuple):
    """The results of attention."""

    out: np.ndarray
    """(..., Q, V)"""
    lse: np.ndarray
    """(..., Q): the log-sum-exp of the kept scores; -inf for a query that keeps nothing."""
    grads: dict[str, np.ndarray]
    """Of "query", "key", "value" and "bias", for the gradient `dout`."""
    weights: np.ndarray
    """(..., Q, N); 0 where a key is not kept."""
    kept: np.ndarray
    """(..., Q, N) bool."""
    clear: np.ndarray
    """(..., Q) bool: whether rounding leaves no doubt about which keys are kept."""

    @property
    def keeping(self) -> np.ndarray:
        """(..., Q) bool: whether a query keeps any key."""
        return np.asarray(self.kept.any(axis=-1))


def solve(problem: AttentionProblem, dropped: np.ndarray | None = None) -> Solution:
    """
    Solve a problem, forward and backward.

    What may not be attended to is left out before anything is computed, so that a NaN there goes
    nowhere. Which weights are dropped is every implementation's own, and so has to be given.
    """
    query, key, value, dout = (a.astype(np.float64) for a in (*problem.arrays, problem.dout))
    allowed = allowed_pairs(problem)
    seen = np.asarray(allowed.any(axis=-2))[..., None]  # by any query
    key, value = np.where(seen, key, 0.0), np.where(seen, value, 0.0)
    with np.errstate(all="ignore"):
        linear = problem.scale * (query @ key.mT)
        softcap = problem.options.get("softcap")
        tanh = None if softcap is None else np.tanh(linear / softcap)
        scores = linear if tanh is None else softcap * tanh
        scores = np.where(allowed, scores + problem.bias, -np.inf)
        kept, clear = _choose(problem, scores)
        scores = np.where(kept, scores, -np.inf)
        top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        top = np.where(np.isfinite(top), top, 0.0)
        exponentials = np.exp(scores - top)
        total = exponentials.sum(axis=-1, keepdims=True)
        weights = np.where(kept, exponentials / total, 0.0)
        lse = (top + np.log(total))[..., 0]

        rate = 0.0 if dropped is None else problem.options["dropout"][0]
        factors = np.where(False if dropped is None else dropped, 0.0, 1 / (1 - rate))
        terms = (factors * weights)[..., None] * value[..., None, :, :]
        out = np.where(kept[..., None], terms, 0.0).sum(axis=-2)

        dweights = np.where(kept, factors * (dout @ value.mT), 0.0)
        dscores = weights * (dweights - (weights * dweights).sum(axis=-1, keepdims=True))
        dlinear = dscores if tanh is None else dscores * (1 - tanh**2)
        dlinear = problem.scale * dlinear
    grads = {
        "query": _sum_to(dlinear @ key, problem.query.shape),
        "key": _sum_to(dlinear.mT @ query, problem.key.shape),
        "value": _sum_to((factors * weights).mT @ dout, problem.value.shape),
    }
    bias = problem.options.get("bias")
    if isinstance(bias, np.ndarray):
        grads["bias"] = _sum_to(dscores, bias.shape)
    elif isinstance(bias, T5Bias):
        places = in_bucket(bias, problem.positions, np.arange(problem.keys))
        sums = [np.where(place, dscores, 0.0).sum(axis=(-1, -2)) for place in places]
        grads["bias"] = np.stack([_sum_to(own, bias.table.shape[1:]) for own in sums])
    return Solution(out, lse, grads, weights, kept, clear)


def allowed_pairs(problem: AttentionProblem) -> np.ndarray:
    """Boolean (..., Q, N): which keys each query may attend to."""
    options = problem.options
    i, j, position = np.arange(problem.queries)[:, None], np.arange(problem.keys), problem.positions
    left, right = options.get("window", (None, None))
    mask = options.get("mask", True)
    mask = mask(position, j) if callable(mask) else mask
    allowed = np.broadcast_to(mask, (*problem.lead, problem.queries, problem.keys))
    if options.get("is_causal"):
        allowed = allowed & (j <= position)
    if left is not None:
        allowed = allowed & (position - left <= j)
    if right is not None:
        allowed = allowed & (j <= position + right)
    if "query_lengths" in options:
        allowed = allowed & (i < _per_head(options["query_lengths"]))
    if "key_lengths" in options:
        allowed = allowed & (j < _per_head(options["key_lengths"]))
    return allowed


def _choose(problem: AttentionProblem, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys that are kept, and the queries for which that is clear."""
    allowed = scores != -np.inf
    p = problem.options.get("p", 1)
    if problem.k is None and p == 1:
        return allowed, np.ones(scores.shape[:-1], bool)
    j, position = np.arange(problem.keys), problem.positions
    sinks, local = problem.options.get("always_keep", (0, 0))
    last = _per_head(problem.options.get("key_lengths", problem.keys)) - 1
    nearest = np.minimum(position, last)
    always = allowed & ((j < sinks) | ((j <= nearest) & (j > nearest - local)))
    others = np.where(always, -np.inf, scores)
    # Stable: among equal scores the lower index comes first.
    order = np.argsort(-others, axis=-1, kind="stable")
    best = np.zeros(scores.shape, bool)
    np.put_along_axis(best, order[..., : problem.k], True, axis=-1)
    best &= others != -np.inf
    certain = np.ones(scores.shape[:-1], bool)
    if p != 1:
        before = _mass_before(scores, always, order)
        error = problem.score_error + (problem.keys + 8) * EPSILON[problem.query.dtype.name]
        certain = ~(best & ~(np.abs(before - p) > error)).any(axis=-1)
        best &= before < p
    least = np.min(others, axis=-1, where=best, initial=np.inf)
    next_best = np.max(others, axis=-1, where=~best, initial=-np.inf)
    clear = certain & ~(least - next_best <= problem.score_error)
    return always | best, clear


def _mass_before(scores: np.ndarray, always: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(..., Q, N): the dense weights of those always kept and those that are better, summed."""
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    mass = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    mass = mass / mass.sum(axis=-1, keepdims=True)
    others = np.take_along_axis(np.where(always, 0.0, mass), order, axis=-1)
    held = np.where(always, mass, 0.0).sum(axis=-1, keepdims=True)
    before = np.empty(scores.shape)
    np.put_along_axis(before, order, held + np.cumsum(others, axis=-1) - others, axis=-1)
    return before


def _per_head(number: int | np.ndarray) -> np.ndarray:
    return np.asarray(number)[..., None, None]


def _sum_to(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The sum over the axes along which an array of `shape` was broadcast to this one's."""
    aligned = (1,) * (array.ndim - len(shape)) + shape
    axes = tuple(i for i, length in enumerate(aligned) if length == 1)
    summed: np.ndarray = array.sum(axis=axes, keepdims=True)
    return summed.reshape(shape)
