"""One call of a feed-forward layer, and the layer by its definition, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from topk_np.testing.close import EPSILON
from topk_np.testing.problems import Printed

ERF = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True, repr=False)
class FFNProblem(Printed):
    """One call of a feed-forward layer as NumPy arrays, and the gradient to send back."""

    x: np.ndarray
    """(..., D)"""
    keys: np.ndarray
    """(F, D)"""
    values: np.ndarray
    """(F, V)"""
    dout: np.ndarray
    """(..., V)"""
    options: dict[str, Any] = field(default_factory=dict)
    """Those that are given, by the names of `topk_np.topk_ffn`."""

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The tokens and both matrices."""
        return self.x, self.keys, self.values

    def given(self, **options: Any) -> FFNProblem:
        """The problem with these options too, or instead."""
        return replace(self, options={**self.options, **options})

    @property
    def score(self) -> float:
        """The largest score there may be in size, of keys and gate; at least 1."""
        keys = max(_largest(self.keys), _largest(self.options.get("gate")))
        product = self.x.shape[-1] * _largest(self.x) * keys
        return float(1 + product + _largest(self.options.get("key_bias")))

    @property
    def score_error(self) -> float:
        """The most that the sizes of two units may be off by, together."""
        width = self.x.shape[-1]
        return float(8 * (width + 4) * EPSILON[self.x.dtype.name] * self.score**2)

    def tolerance(self, name: str) -> float:
        """
        The most that a result may be off by: "out", or the gradient of an argument.

        A score errs by (D + 2) u of S, the largest; activations and their derivatives have slopes
        below 2, and a gate makes a product of two scores of it, hence S squared. What is summed
        adds its length: units to outputs and to gradients of tokens, tokens to the others.
        """
        units, width = self.keys.shape
        tokens, out_width = math.prod(self.x.shape[:-1]), self.values.shape[1]
        value, dout, x = map(_largest, (self.values, self.dout, self.x))
        keys = max(_largest(self.keys), _largest(self.options.get("gate")))
        dscore = out_width * value * dout
        sizes = {
            "out": units * value + _largest(self.options.get("value_bias")),
            "x": units * dscore * 2 * keys,
            "keys": tokens * dscore * x,
            "gate": tokens * dscore * x,
            "key_bias": tokens * dscore,
            "values": tokens * dout,
            "value_bias": tokens * dout,
        }
        length = units + width + tokens + out_width + 16
        return float(4 * length * EPSILON[self.x.dtype.name] * self.score**2 * sizes[name])


class FFNSolution(NamedTuple):
    """The results of the layer."""

    out: np.ndarray
    """(..., V)"""
    grads: dict[str, np.ndarray]
    """By the names of the arguments that are given."""
    clear: np.ndarray
    """(...) bool: whether rounding leaves no doubt about which units are kept."""


def solve_ffn(problem: FFNProblem) -> FFNSolution:
    """Solve a problem, forward and backward."""
    options = problem.options
    arrays = {"x": problem.x, "keys": problem.keys, "values": problem.values}
    arrays |= {n: options[n] for n in ("key_bias", "value_bias", "gate") if n in options}
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    x, keys, values = (wide[name] for name in ("x", "keys", "values"))
    gate, dout = wide.get("gate"), problem.dout.astype(np.float64)
    activation = options.get("activation", "relu")

    linear = x @ keys.T + wide.get("key_bias", 0.0)
    scores = linear if gate is None else x @ gate.T
    everything = np.ones(scores.shape, bool)
    active = activate(activation, scores, everything)[0]
    ranks = scores
    if options.get("select", "score") == "activation":
        ranks = np.abs(active if gate is None else active * linear)
    kept, clear = _choose(ranks, options.get("k"), problem.score_error)

    active, backward = activate(activation, scores, kept)
    hidden = np.where(kept, active if gate is None else active * linear, 0.0)
    out = hidden @ values + wide.get("value_bias", 0.0)

    dhidden = np.where(kept, dout @ values.T, 0.0)
    dscores = backward(dhidden if gate is None else dhidden * linear)
    flat = {"x": x, "dout": dout, "hidden": hidden, "dscores": dscores}
    dlinear = dscores if gate is None else dhidden * active
    flat["dlinear"] = dlinear
    tokens = math.prod(x.shape[:-1])
    rows = {name: array.reshape(tokens, array.shape[-1]) for name, array in flat.items()}
    grads = {
        "x": dlinear @ keys if gate is None else dlinear @ keys + dscores @ gate,
        "keys": rows["dlinear"].T @ rows["x"],
        "values": rows["hidden"].T @ rows["dout"],
        "key_bias": rows["dlinear"].sum(axis=0),
        "value_bias": rows["dout"].sum(axis=0),
        "gate": rows["dscores"].T @ rows["x"],
    }
    return FFNSolution(out, {name: grads[name] for name in arrays}, clear)


def activate(name: str, s: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, Any]:
    """The activation of the kept scores, and the function that takes its gradient to theirs."""
    if name == "softmax":
        top = np.max(s, axis=-1, keepdims=True, where=kept, initial=-np.inf)
        exponentials = np.where(kept, np.exp(s - top), 0.0)
        weights = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return weights, lambda d: weights * (d - (weights * d).sum(axis=-1, keepdims=True))
    if name == "relu":
        value, slope = np.maximum(s, 0), np.asarray(s > 0, np.float64)
    elif name == "gelu":
        share = (1 + ERF(s / math.sqrt(2))) / 2
        value, slope = s * share, share + s * np.exp(-(s**2) / 2) / math.sqrt(2 * math.pi)
    elif name == "gelu_tanh":
        factor = math.sqrt(2 / math.pi)
        tanh = np.tanh(factor * (s + 0.044715 * s**3))
        inner = factor * (1 + 3 * 0.044715 * s**2)
        value, slope = s * (1 + tanh) / 2, (1 + tanh) / 2 + s * (1 - tanh**2) * inner / 2
    elif name == "silu":
        share = 1 / (1 + np.exp(-s))
        value, slope = s * share, share * (1 + s * (1 - share))
    else:
        value, slope = s, np.ones_like(s)
    return value, lambda d: np.where(kept, d * slope, 0.0)


def _choose(ranks: np.ndarray, k: int | None, slack: float) -> tuple[np.ndarray, np.ndarray]:
    """The units that are kept, and the tokens for which that is clear."""
    if k is None:
        return np.ones(ranks.shape, bool), np.ones(ranks.shape[:-1], bool)
    order = np.argsort(-ranks, axis=-1, kind="stable")  # the lower index first among equals
    kept = np.zeros(ranks.shape, bool)
    np.put_along_axis(kept, order[..., :k], True, axis=-1)
    least = np.min(ranks, axis=-1, where=kept, initial=np.inf)
    next_best = np.max(ranks, axis=-1, where=~kept, initial=-np.inf)
    return kept, ~(least - next_best <= slack)


def _largest(array: np.ndarray | None) -> float:
    return 0.0 if array is None else float(np.abs(array.astype(np.float64)).max(initial=0))
