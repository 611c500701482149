"""
A check that a problem of `tests.recorded` keeps the same keys on every processor.

It does if the last score that is kept and the first that is not differ by more than rounding can
change, or are equal in exact arithmetic. Scores are computed anew here, in float64 and by other
means than the package's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import erf

import topk_np
from tests.recorded_problems import Problem

BOUNDS = 8  # rounding bounds by which scores must differ


def is_settled(problem: Problem) -> bool:
    """Return whether rounding cannot change what any query keeps."""
    if not problem.function.startswith("topk"):
        return True
    if problem.function == "topk_ffn":
        scores, errors = _unit_sizes(problem)
        return _apart(scores, errors, problem.options["k"], problem.whole)
    scores, errors = _attention_scores(problem)
    k, always = problem.options.get("k"), _always_kept(problem, scores.shape)
    others = np.where(always, -np.inf, scores)
    if k is not None or problem.options["p"] == 1:
        return _apart(others, errors, k or problem.options["max_k"], problem.whole)
    before, margin = _mass(scores, others, errors, problem)
    p, most = problem.options["p"], problem.options["max_k"]
    before = before[:, :most]
    counts, near = np.sum(before < p, axis=1), np.abs(before - p) <= margin
    return not np.any(near) and _apart(others, errors, counts, problem.whole)


def _epsilon(problem: Problem) -> float:
    """The rounding unit of what the problem is computed in."""
    return float(np.finfo(np.float64 if problem.dtype == "float64" else np.float32).eps)


def _product(problem: Problem, left: np.ndarray, right: np.ndarray) -> tuple[Any, Any]:
    """``left rightᵀ``, and a bound of its rounding error: none where both are small integers."""
    left, right = (np.nan_to_num(array.astype(np.float64)) for array in (left, right))
    bound = np.abs(left) @ np.abs(np.swapaxes(right, -2, -1))
    bound *= 0 if problem.whole else _epsilon(problem) * (left.shape[-1] + 4)
    return left @ np.swapaxes(right, -2, -1), bound


def _attention_scores(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Scores (..., Q, N), -inf where hidden, and bounds of their errors."""
    query, key, value = problem.inputs
    options, epsilon = problem.options, _epsilon(problem)
    scores, errors = _product(problem, query, key)
    scale = options.get("scale", query.shape[-1] ** -0.5)
    scores, errors = scores * scale, errors * abs(scale)  # which keeps equal products equal
    if "softcap" in options:
        scores = options["softcap"] * np.tanh(scores / options["softcap"])
        errors = errors + 4 * epsilon * np.abs(scores)
    lead = np.broadcast_shapes(scores.shape[:-2], value.shape[:-2])
    scores, errors = (
        np.broadcast_to(array, (*lead, *array.shape[-2:])) for array in (scores, errors)
    )
    bias = _bias(options.get("bias"), options.get("query_offset"), lead, scores.shape)
    errors = errors + 2 * epsilon * (np.abs(scores) + np.nan_to_num(np.abs(bias), posinf=0))
    return np.where(_allowed(problem, scores.shape), scores + bias, -np.inf), errors


def _positions(offset: Any, lead: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Positions of queries (..., Q, 1) and keys (1, N)."""
    first = np.broadcast_to(0 if offset is None else offset, lead)[..., None, None]
    return first + np.arange(shape[-2])[:, None], np.arange(shape[-1])[None, :]


def _bias(bias: Any, offset: Any, lead: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """The term added to each score, in float64."""
    query, key = _positions(offset, lead, shape)
    if bias is None:
        return np.zeros(())
    if isinstance(bias, np.ndarray):
        return bias.astype(np.float64)
    if isinstance(bias, topk_np.ALiBi):
        return -np.broadcast_to(bias.slopes, lead)[..., None, None] * np.abs(query - key)
    if not isinstance(bias, topk_np.T5Bias):
        return np.asarray(bias(query, key), np.float64)
    distance, table = key - query, bias.table.astype(np.float64)
    half, start = len(table), np.zeros(distance.shape, np.int64)
    if bias.bidirectional:
        half //= 2
        start = np.where(distance > 0, half, 0)
    size = np.abs(distance) if bias.bidirectional else np.maximum(-distance, 0)
    exact = half // 2
    place = np.log(np.maximum(size, 1) / exact) / np.log(bias.max_distance / exact)
    far = np.minimum(exact + (place * (half - exact) + 1e-9).astype(np.int64), half - 1)
    buckets = start + np.where(size < exact, size, far)
    heads = np.broadcast_to(np.moveaxis(table, 0, -1), (*lead, len(table)))
    return np.take_along_axis(
        heads[..., None, :], np.broadcast_to(buckets, (*lead, *shape[-2:])), axis=-1
    )


def _allowed(problem: Problem, shape: tuple[int, ...]) -> np.ndarray:
    """The pairs that may attend, (..., Q, N) bool."""
    options, lead = problem.options, shape[:-2]
    query, key = _positions(options.get("query_offset"), lead, shape)
    allowed = np.ones(shape, bool)
    mask = options.get("mask")
    if mask is not None:
        allowed &= mask(query, key) if callable(mask) else mask
    left, right = options.get("window", (None, None))
    right = 0 if options.get("is_causal") else right
    if left is not None:
        allowed &= key >= query - left
    if right is not None:
        allowed &= key <= query + right
    for name, place in (("query_lengths", np.arange(shape[-2])[:, None]), ("key_lengths", key)):
        if name in options:
            allowed &= place < np.broadcast_to(options[name], lead)[..., None, None]
    return allowed


def _always_kept(problem: Problem, shape: tuple[int, ...]) -> np.ndarray:
    """The pairs that `always_keep` keeps, where they are allowed."""
    sinks, local = problem.options.get("always_keep", (0, 0))
    query, key = _positions(problem.options.get("query_offset"), shape[:-2], shape)
    keys = np.broadcast_to(problem.options.get("key_lengths", shape[-1]), shape[:-2])
    nearest = np.minimum(query, keys[..., None, None] - 1)
    return np.broadcast_to((key < sinks) | ((key <= nearest) & (key > nearest - local)), shape)


def _unit_sizes(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The sizes by which units are ranked, (T, F), and bounds of their errors."""
    x, keys, _ = problem.inputs
    options, epsilon = problem.options, _epsilon(problem)
    x, gate, name = x.reshape(-1, x.shape[-1]), options.get("gate"), options["activation"]
    linear, linear_errors = _product(problem, x, keys)
    if "key_bias" in options:
        bias = options["key_bias"].astype(np.float64)
        linear_errors = linear_errors + 2 * epsilon * (np.abs(linear) + np.abs(bias))
        linear = linear + bias
    scores, errors = (linear, linear_errors) if gate is None else _product(problem, x, gate)
    if options["select"] == "score" or (gate is None and name == "softmax"):
        return scores, errors
    weights = _activated(name, scores)
    if name == "softmax":
        weight_errors = weights * (2 * errors.max(axis=1, keepdims=True) + 8 * epsilon)
    else:  # no slope is above 1.2
        weight_errors = 1.2 * errors + 8 * epsilon * (np.abs(scores) + np.abs(weights))
    if name == "relu":
        weight_errors = np.where(scores < -BOUNDS * errors, 0.0, weight_errors)
    if gate is None:
        return np.abs(weights), weight_errors
    both = weight_errors * np.abs(linear) + np.abs(weights) * linear_errors
    return np.abs(weights * linear), both + 2 * epsilon * np.abs(weights * linear)


def _activated(name: str, s: np.ndarray) -> Any:
    """An activation in float64."""
    if name == "softmax":
        weights = np.exp(s - s.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)
    made: dict[str, Callable[[], Any]] = {
        "relu": lambda: np.maximum(s, 0),
        "gelu": lambda: 0.5 * s * (1 + erf(s / np.sqrt(2))),
        "gelu_tanh": lambda: 0.5 * s * (1 + np.tanh(np.sqrt(2 / np.pi) * (s + 0.044715 * s**3))),
        "silu": lambda: s * (0.5 * (1 + np.tanh(0.5 * s))),
        "identity": lambda: s,
    }
    return made[name]()


def _sorted(scores: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of falling scores (R, N), lower index first among equals, and their errors."""
    scores, errors = (array.reshape(-1, array.shape[-1]) for array in (scores, errors))
    order = np.argsort(-scores, axis=1, kind="stable")
    return tuple(np.take_along_axis(array, order, axis=1) for array in (scores, errors))  # type: ignore[return-value]


def _apart(scores: np.ndarray, errors: np.ndarray, k: Any, ties: bool) -> bool:
    """Return whether rounding cannot change the k largest of any row; k is a number or (R,)."""
    scores, errors = _sorted(scores, errors)
    k = np.broadcast_to(k, scores.shape[:1])
    padded = np.pad(scores, ((0, 0), (0, 1)), constant_values=-np.inf)
    rest = np.take_along_axis(padded, np.minimum(k, scores.shape[1])[:, None], axis=1)[:, 0]
    cut = (k > 0) & (rest > -np.inf)
    scores, errors, k = scores[cut], errors[cut], k[cut, None]
    kept = np.arange(scores.shape[1]) < k
    for place, others in ((k - 1, ~kept), (k, kept)):
        score, error = (np.take_along_axis(array, place, axis=1) for array in (scores, errors))
        far = np.abs(scores - score) > BOUNDS / 2 * (errors + error)
        same = (scores == score) & (ties | (errors + error == 0))
        if np.any(others & ~far & ~same):
            return False
    return True


def _mass(
    scores: np.ndarray, others: np.ndarray, errors: np.ndarray, problem: Problem
) -> tuple[np.ndarray, float]:
    """The mass before each of the best keys (R, N), and how much rounding can change it."""
    largest = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(largest == -np.inf, 0, largest))
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
    held = np.where(others == -np.inf, weights, 0).sum(axis=-1).reshape(-1, 1)
    best, _ = _sorted(np.where(others == -np.inf, 0, weights), weights)
    before = held + np.cumsum(best, axis=1) - best
    largest_error = float(np.max(errors, initial=0, where=np.isfinite(scores)))
    summing = min(scores.shape[-1], 64) * _epsilon(problem)  # it is done in parts
    return before, BOUNDS * (2 * largest_error + summing)
