"""Slow definitions to compare with, and the one way results are compared.

The functions `*_by_loops` are written with Python floats and three nested loops, so that they share
nothing with the package: no matrix product, no broadcasting rule, no masking arithmetic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

import topk_np

Array = Any


def assert_close(actual: np.ndarray, expected: np.ndarray, *, size: float = 1.0) -> None:
    """Assert equality up to rounding, elementwise; shape, dtype, NaN and inf must be the same.

    `size` is about how large the numbers that were added up are: the tolerance is 32 roundings of
    a number of that size, or of the largest expected one.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
    finite = np.abs(expected[np.isfinite(expected)])
    size = max(size, float(finite.max(initial=0)))
    tolerance = 32 * float(np.finfo(expected.dtype).eps) * size
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def assert_rounded_once(actual: np.ndarray, unrounded: np.ndarray) -> None:
    """Assert that `actual` is `unrounded`, computed in single precision or better, rounded to it.

    One rounding is half a unit in the last place; twice that allows for the single precision.
    """
    limits = ml_dtypes.finfo(actual.dtype)  # type: ignore[no-untyped-call]
    slack = float(limits.smallest_subnormal) + 1e-6 * float(np.abs(unrounded).max(initial=0))
    wide = np.asarray(actual, unrounded.dtype)
    np.testing.assert_allclose(wide, unrounded, rtol=float(limits.eps), atol=slack)


def assert_all_close(
    actual: Sequence[np.ndarray | None],
    expected: Sequence[np.ndarray | None],
    *,
    size: float = 1.0,
) -> None:
    """`assert_close` for tuples of gradients; None must face None."""
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert_close(one, other, size=size)


def assert_same_bits(actual: np.ndarray | None, expected: np.ndarray | None) -> None:
    """Assert that two arrays are equal bit by bit, NaN and the sign of zero included."""
    if actual is None or expected is None:
        assert actual is expected
        return
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes(), (actual, expected)


def sum_to_shape(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum over the axes along which an array of `shape` was broadcast to get to this one's."""
    aligned = (1,) * (array.ndim - len(shape)) + shape
    axes = tuple(axis for axis, length in enumerate(aligned) if length == 1)
    summed: np.ndarray = array.sum(axis=axes, keepdims=True)
    return summed.reshape(shape)


def select_by_sorting(scores: Sequence[float], k: int) -> list[int]:
    """Indices of the k largest, ascending: lower index first among equals, NaN above all.

    Entries of -inf are masked and never taken.
    """
    allowed = [j for j, score in enumerate(scores) if score != -math.inf]
    return sorted(sorted(allowed, key=lambda j: descending(scores[j], j))[:k])


def descending(score: float, index: int) -> tuple[bool, float, int]:
    """Sort key that puts NaN first, then larger scores, then lower indices."""
    nan = math.isnan(score)
    return (not nan, 0.0 if nan else -score, index)


def softmax_by_loops(scores: Sequence[float]) -> list[float]:
    """Softmax of one row; -inf gets weight 0, and a row of nothing else is all zero."""
    allowed = [score for score in scores if score != -math.inf]
    if not allowed:
        return [0.0] * len(scores)
    if any(math.isnan(score) or score == math.inf for score in allowed):
        return [0.0 if score == -math.inf else math.nan for score in scores]
    top = max(allowed)
    exponentials = [0.0 if score == -math.inf else math.exp(score - top) for score in scores]
    total = math.fsum(exponentials)
    return [exponential / total for exponential in exponentials]


def _dot(left: np.ndarray, right: np.ndarray) -> float:
    return math.fsum(float(a) * float(b) for a, b in zip(left, right, strict=True))


def allowed_pairs(
    lead: tuple[int, ...],
    queries: int,
    keys: int,
    *,
    mask: Any = None,
    is_causal: bool = False,
    query_offset: Any = None,
    window: Any = None,
    query_lengths: Any = None,
    key_lengths: Any = None,
) -> np.ndarray:
    """Which key each query may attend to, (..., Q, N), pair by pair."""
    query_ends = np.broadcast_to(queries if query_lengths is None else query_lengths, lead)
    key_ends = np.broadcast_to(keys if key_lengths is None else key_lengths, lead)
    offsets = np.broadcast_to(0 if query_offset is None else query_offset, lead)
    shape = (*lead, queries, keys)
    given = None if mask is None or callable(mask) else np.broadcast_to(mask, shape)
    allowed = np.zeros(shape, bool)
    for place in np.ndindex(allowed.shape):
        *where, i, j = place
        position = i + int(offsets[tuple(where)])
        fine = not is_causal or j <= position
        left, right = window or (None, None)
        fine = fine and (left is None or position - left <= j)
        fine = fine and (right is None or j <= position + right)
        fine = fine and i < query_ends[tuple(where)] and j < key_ends[tuple(where)]
        if callable(mask):
            fine = fine and bool(mask(np.asarray(position), np.asarray(j)))
        elif given is not None:
            fine = fine and bool(given[place])
        allowed[place] = fine
    return allowed


def t5_bucket(distance: int, buckets: int, bidirectional: bool, max_distance: int) -> int:
    """The bucket of key position - query position, by the logarithm of section 2.1."""
    start = 0
    if bidirectional:
        buckets //= 2
        start = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return start + distance
    place = math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact)
    return start + min(exact + int(place + 1e-9), buckets - 1)


def bias_by_loops(
    lead: tuple[int, ...], queries: int, keys: int, bias: Any, query_offset: Any
) -> np.ndarray:
    """What is added to each score, (..., Q, N), pair by pair."""
    shape = (*lead, queries, keys)
    if bias is None:
        return np.zeros(shape)
    if isinstance(bias, np.ndarray):
        return np.broadcast_to(bias, shape)
    offsets = np.broadcast_to(0 if query_offset is None else query_offset, lead)
    full = np.zeros(shape)
    for place in np.ndindex(shape):
        *where, i, j = place
        at = tuple(where)
        position = i + int(offsets[at])
        if isinstance(bias, topk_np.ALiBi):
            full[place] = -np.broadcast_to(bias.slopes, lead)[at] * abs(position - j)
        elif isinstance(bias, topk_np.T5Bias):
            count = len(bias.table)
            bucket = t5_bucket(j - position, count, bias.bidirectional, bias.max_distance)
            full[place] = np.broadcast_to(bias.table[bucket], lead)[at]
        else:
            full[place] = bias(np.asarray(position), np.asarray(j))
    return full


def threefry_by_ints(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """The two words of Threefry-2x32 with 20 rounds, in Python's integers."""
    word = 2**32
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = ((c + k) % word for c, k in zip(counter, key, strict=True))
    for i in range(20):
        rotation = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        x = (x + y) % word
        y = ((y << rotation) % word | y >> (32 - rotation)) ^ x
        if i % 4 == 3:
            block = i // 4 + 1
            x, y = (x + keys[block % 3]) % word, (y + keys[(block + 1) % 3] + block) % word
    return x, y


def dropout_by_loops(
    lead: tuple[int, ...], queries: int, keys: int, dropout: Any, query_offset: Any
) -> np.ndarray:
    """What dropout multiplies each weight by, (..., Q, N), pair by pair."""
    factors = np.ones((*lead, queries, keys))
    if dropout is None:
        return factors
    rate, seed = dropout
    offsets = np.broadcast_to(0 if query_offset is None else query_offset, lead)
    for head, at in enumerate(np.ndindex(lead)):
        for i in range(queries):
            position = (i + int(offsets[at])) % 2**32
            row = threefry_by_ints((seed % 2**32, seed >> 32), (head, position))
            for j in range(keys):
                bits = (threefry_by_ints(row, (j, 0))[0] + 2**31) % 2**32
                factors[(*at, i, j)] = 0 if bits < rate * 2**32 else 1 / (1 - rate)
    return factors


def attention_by_loops(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    allowed: np.ndarray,
    scale: float,
    k: int | None = None,
) -> np.ndarray:
    """Attention over the allowed pairs, the k best of them if k is given; float64."""
    lead = allowed.shape[:-2]
    queries, keys = allowed.shape[-2:]
    query, key, value = (
        np.broadcast_to(array, (*lead, *array.shape[-2:])) for array in (query, key, value)
    )
    out = np.zeros((*lead, queries, value.shape[-1]))
    for *where, i in np.ndindex((*lead, queries)):
        at = tuple(where)
        scores = [
            scale * _dot(query[at][i], key[at][j]) if allowed[at][i, j] else -math.inf
            for j in range(keys)
        ]
        chosen = select_by_sorting(scores, keys if k is None else k)
        weights = softmax_by_loops([scores[j] for j in chosen])
        for v in range(value.shape[-1]):
            out[at][i, v] = math.fsum(
                weight * float(value[at][j, v]) for weight, j in zip(weights, chosen, strict=True)
            )
    return out


_ROOT_2 = math.sqrt(2.0)
_GELU_TANH = math.sqrt(2.0 / math.pi)
POINTWISE = {
    "relu": lambda s: max(s, 0.0),
    "gelu": lambda s: 0.5 * s * (1 + math.erf(s / _ROOT_2)),
    "gelu_tanh": lambda s: 0.5 * s * (1 + math.tanh(_GELU_TANH * (s + 0.044715 * s**3))),
    "silu": lambda s: s / (1 + math.exp(-s)),
    "identity": lambda s: s,
}
ACTIVATION_NAMES = (*POINTWISE, "softmax")


def activation_by_loops(name: str, scores: Sequence[float]) -> list[float]:
    """Apply an activation to one row of finite scores."""
    if name == "softmax":
        return softmax_by_loops(scores)
    return [POINTWISE[name](score) for score in scores]


def hidden_by_loops(
    x: np.ndarray,
    keys: np.ndarray,
    activation: str,
    *,
    key_bias: np.ndarray | None = None,
    gate: np.ndarray | None = None,
    units: Sequence[int] | None = None,
) -> tuple[list[float], list[float]]:
    """Scores that go into the activation, and the units' values h, of one token.

    With `units` only those take part, which matters to softmax.
    """
    units = range(len(keys)) if units is None else units
    linear = [_dot(x, keys[j]) + (0.0 if key_bias is None else float(key_bias[j])) for j in units]
    if gate is None:
        return linear, activation_by_loops(activation, linear)
    scores = [_dot(x, gate[j]) for j in units]
    active = activation_by_loops(activation, scores)
    return scores, [a * b for a, b in zip(active, linear, strict=True)]


def ffn_by_loops(
    x: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    *,
    k: int | None = None,
    activation: str = "relu",
    key_bias: np.ndarray | None = None,
    value_bias: np.ndarray | None = None,
    gate: np.ndarray | None = None,
    select: str = "score",
) -> tuple[np.ndarray, np.ndarray]:
    """Feed-forward layer in float64, and the units taken, (..., K), ascending."""
    size = len(keys) if k is None else min(k, len(keys))
    out = np.zeros((*x.shape[:-1], values.shape[-1]))
    taken = np.zeros((*x.shape[:-1], size), np.int64)
    for at in itertools.product(*map(range, x.shape[:-1])):
        scores, hidden = hidden_by_loops(x[at], keys, activation, key_bias=key_bias, gate=gate)
        ranked = scores if select == "score" else [abs(h) for h in hidden]
        units = select_by_sorting(ranked, size)
        _, hidden = hidden_by_loops(
            x[at], keys, activation, key_bias=key_bias, gate=gate, units=units
        )
        taken[at] = units
        for v in range(values.shape[-1]):
            bias = 0.0 if value_bias is None else float(value_bias[v])
            out[at][v] = bias + math.fsum(
                h * float(values[j, v]) for h, j in zip(hidden, units, strict=True)
            )
    return out, taken
