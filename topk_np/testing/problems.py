"""One call of attention: its arrays, its options, and how exactly its results can be known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np

from topk_np.testing.biases import PairFunction, added
from topk_np.testing.close import EPSILON

SHOWN = 300  # elements of an array that are worth printing


class Printed:
    """A problem that is printed as the code that makes it, so that it can be run again."""

    def __repr__(self) -> str:
        """See the class."""
        return _made(self)


@dataclass(frozen=True, repr=False)
class AttentionProblem(Printed):
    """One call of attention as NumPy arrays, and the gradient to send back."""

    query: np.ndarray
    """(..., Q, D)"""
    key: np.ndarray
    """(..., N, D)"""
    value: np.ndarray
    """(..., N, V)"""
    dout: np.ndarray
    """(..., Q, V)"""
    options: dict[str, Any] = field(default_factory=dict)
    """Those that are given, by the names of `topk_np.topk_attention`."""

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axes of the output."""
        return self.dout.shape[:-2]

    @property
    def queries(self) -> int:
        """Q."""
        return int(self.query.shape[-2])

    @property
    def keys(self) -> int:
        """N."""
        return int(self.key.shape[-2])

    @property
    def k(self) -> int | None:
        """The most keys that a query keeps; None: all."""
        k: int | None = self.options.get("k", self.options.get("max_k"))
        return k

    @property
    def positions(self) -> np.ndarray:
        """(..., Q, 1): where the queries stand among the keys, of all heads or of each."""
        offset = np.asarray(self.options.get("query_offset", 0))[..., None, None]
        return np.asarray(offset + np.arange(self.queries)[:, None])

    @property
    def bias(self) -> np.ndarray:
        """(..., Q, N), or what broadcasts to as much: what is added to the scores, in float64."""
        return added(self.options.get("bias"), self.positions, np.arange(self.keys))

    @property
    def scale(self) -> float:
        """The factor of the products."""
        given: float | None = self.options.get("scale")
        return 1 / math.sqrt(max(self.query.shape[-1], 1)) if given is None else given

    def given(self, **options: Any) -> AttentionProblem:
        """The problem with these options too, or instead."""
        return replace(self, options={**self.options, **options})

    def without(self, *names: str) -> AttentionProblem:
        """The problem without some of its options."""
        left = {name: value for name, value in self.options.items() if name not in names}
        return replace(self, options=left)

    def tolerance(self, name: str) -> float:
        """
        The most that a result may be off by: of "out", "lse", "query", "key", "value" or "bias".

        With S the largest score, D terms a product and u = eps / 2, a score errs by (D + 2) S u,
        and so its weight by 2 (D + 2) S u + (N + 8) u of itself: the exponential, the sum of N,
        the division. Weights sum to 1, so an output errs by that and N u more of the largest
        value. The gradients follow in the same way through ``ds = weights * (dO V - ...)``; those
        of keys, values and biases are summed over queries, and over heads that share them.
        """
        query, key, value = map(_largest, self.arrays)
        dout, scale = _largest(self.dout), abs(self.scale)
        width, value_width = self.query.shape[-1], self.value.shape[-1]
        score = scale * width * query * key + _largest(self.bias)
        kept = 1 - self.options.get("dropout", (0.0, 0))[0]
        dscore = 2 * value_width * value * dout / kept
        sharers = self.queries * max(math.prod(self.lead), 1)
        sizes = {
            "out": value / kept,
            "lse": 1.0,
            "query": dscore * scale * key,
            "key": sharers * dscore * scale * query,
            "value": sharers * dout / kept,
            "bias": sharers * dscore,
        }
        length = self.keys + width + 16
        if name in ("query", "key", "bias"):
            length += value_width
        if name in ("key", "value", "bias"):
            length += sharers
        tolerance: float = length * EPSILON[self.query.dtype.name] * (1 + score) * sizes[name]
        return tolerance

    @property
    def score_error(self) -> float:
        """The most that two computed scores of one query may be off by, together."""
        query, key, _ = map(_largest, self.arrays)
        width = self.query.shape[-1]
        score = abs(self.scale) * width * query * key + _largest(self.bias)
        error: float = 2 * (width + 4) * EPSILON[self.query.dtype.name] * score
        return error


def as_code(value: Any) -> str:
    """A problem, or what it is made of, as Python code; of a large array its shape alone."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {as_code(item)}" for key, item in value.items()) + "}"
    if is_dataclass(value) and not isinstance(value, PairFunction):
        return _made(value)
    if not isinstance(value, np.ndarray):
        return repr(value)
    if value.size > SHOWN:
        return f"<{value.dtype} {value.shape}>"
    if value.size == 0:
        return f"np.zeros({value.shape}, {value.dtype.name!r})"
    numbers = repr(value.tolist()).replace("nan", "np.nan").replace("inf", "np.inf")
    return f"np.array({numbers}, {value.dtype.name!r})"


def _made(one: Any) -> str:
    """A dataclass as the code that makes it."""
    parts = (f"{f.name}={as_code(getattr(one, f.name))}" for f in fields(one))
    return f"{type(one).__name__}({', '.join(parts)})"


def _largest(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)]
    return float(np.abs(finite.astype(np.float64)).max(initial=0))
