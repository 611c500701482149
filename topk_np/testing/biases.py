"""Masks and biases that are functions of positions, and what every form of bias adds to a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from topk_np.options.relative import ALiBi, T5Bias


@dataclass(frozen=True, repr=False)
class PairFunction:
    """A function of the positions of queries and keys, printed as the code that makes it."""

    code: str

    def __call__(self, i: Any, j: Any) -> Any:
        """Of positions that broadcast."""
        return eval(self.code)(i, j)

    def __repr__(self) -> str:
        """See the class."""
        return self.code


MASK_FUNCTIONS = (
    PairFunction("lambda i, j: j <= i"),
    PairFunction("lambda i, j: (i + j) % 3 != 1"),
    PairFunction("lambda i, j: j >= 1"),
)
BIAS_FUNCTIONS = (
    PairFunction("lambda i, j: j - i"),
    PairFunction("lambda i, j: -((i + j) % 3)"),
)


def added(bias: Any, position: np.ndarray, key: np.ndarray) -> np.ndarray:
    """
    The numbers that a bias adds to the scores, in float64; they broadcast to (..., Q, N).

    The queries are at `position` (..., Q, 1), the keys at `key` (N,).
    """
    if bias is None:
        return np.zeros(())
    if isinstance(bias, ALiBi):
        return np.asarray(-_wide(bias.slopes)[..., None, None] * np.abs(key - position))
    if isinstance(bias, T5Bias):
        values = _wide(bias.table)[..., None, None]
        places = in_bucket(bias, position, key)
        return np.asarray(sum(np.where(*pair, 0.0) for pair in zip(places, values, strict=True)))
    return _wide(bias(position, key) if callable(bias) else bias)


def in_bucket(bias: T5Bias, position: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
    """Boolean (..., Q, N) for each bucket: the pairs that share it."""
    count, distance = len(bias.table), (key - position).astype(object)  # of any size
    half = count // 2 if bias.bidirectional else count
    size = np.abs(distance) if bias.bidirectional else np.maximum(-distance, 0)
    exact, furthest = half // 2, bias.max_distance
    ranges = half - exact
    # exact + floor(ranges log(size / exact) / log(furthest / exact)), without logarithms
    bucket = np.minimum(size, exact)
    for i in range(1, ranges):
        bucket = bucket + (size**ranges * exact**i >= furthest**i * exact**ranges)
    if bias.bidirectional:
        bucket = bucket + (distance > 0) * half
    return [np.asarray(bucket == i, bool) for i in range(count)]


def _wide(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)
