"""Problems of linear attention, and the same function with all weights written out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.backends import Backend
from tests.oracles import allowed_pairs
from tests.strategies import leading_axes, seeds
from topk_np.baselines import (
    performer_attention_bwd,
    performer_attention_fwd,
    rfa_attention_bwd,
    rfa_attention_fwd,
)

TRIOS: dict[str, tuple[Any, Any]] = {
    "performer": (performer_attention_fwd, performer_attention_bwd),
    "rfa": (rfa_attention_fwd, rfa_attention_bwd),
}
KINDS = (*TRIOS, "rfa-gated")


@dataclass(frozen=True)
class LinearProblem:
    """One call in float64, with NaN in what is masked, and the gradient to send back."""

    method: str
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    gate: np.ndarray | None
    projection: np.ndarray
    options: dict[str, Any]
    chunk_size: int
    dout: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray | None, ...]:
        """What has a gradient."""
        return self.query, self.key, self.value, self.gate

    def run(
        self, xp: Backend, chunk_size: int | None = None, arrays: Any = None
    ) -> tuple[np.ndarray, tuple[Any, ...]]:
        """Output and gradients, as NumPy arrays; the gate's gradient last."""
        fwd, bwd = TRIOS[self.method]
        *inputs, gate = xp.arrays(*(self.arrays if arrays is None else arrays))
        options = {**self.options, "projection": self.projection}
        options = xp.options(options) | ({} if gate is None else {"gate": gate})
        chunk_size = self.chunk_size if chunk_size is None else chunk_size
        out, residuals = fwd(*inputs, **options, chunk_size=chunk_size)
        grads = tuple(bwd(residuals, xp.asarray(self.dout)))
        grads = grads if len(grads) == 4 else (*grads, None)
        return xp.to_numpy(out), tuple(None if g is None else xp.to_numpy(g) for g in grads)

    @property
    def weights(self) -> np.ndarray:
        """(..., Q, N): before they are divided by their sum."""
        lead, (queries, keys) = self.dout.shape[:-2], (self.query.shape[-2], self.key.shape[-2])
        allowed = allowed_pairs(lead, queries, keys, **self.options_of_pairs)
        kernel = self.kernel
        if self.gate is None:
            return np.asarray(np.where(allowed, kernel, 0))
        weights = np.zeros((*lead, queries, keys))
        unmasked = np.broadcast_to(self.options.get("mask", True), (*lead, 1, keys))[..., 0, :]
        lengths = np.asarray(self.options.get("key_lengths", keys))
        unmasked = unmasked & (
            np.arange(keys) < lengths[..., None]
        )  # padding forgets nothing either
        gates = np.where(unmasked, np.broadcast_to(self.gate, (*lead, keys)), 1)
        kernel = np.broadcast_to(kernel, weights.shape)
        for place in zip(*np.nonzero(allowed), strict=True):
            *head, i, j = place
            last = min(i + self.options.get("query_offset", 0), keys - 1)
            own = gates[tuple(head)]
            weights[place] = kernel[place] * (1 - own[j]) * math.prod(own[j + 1 : last + 1])
        return weights

    @property
    def options_of_pairs(self) -> dict[str, Any]:
        names = ("mask", "is_causal", "query_offset", "key_lengths")
        return {name: self.options[name] for name in names if name in self.options}

    @property
    def kernel(self) -> np.ndarray:
        """(..., Q, N): the mean over the random vectors, NaN where a key is."""
        x, y, w = self.query[..., :, None, :], self.key[..., None, :, :], self.projection
        scale = self.options.get("scale")
        if self.method == "performer":
            scale = 1 / math.sqrt(x.shape[-1]) if scale is None else scale
        else:
            scale = 1.0 if scale is None else scale
            x, y = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
        x, y = x * math.copysign(math.sqrt(abs(scale)), scale), y * math.sqrt(abs(scale))
        if self.method == "rfa":
            return np.asarray(np.cos((x - y) @ w.T).mean(axis=-1))
        norms = np.sum(x * x + y * y, axis=-1) / 2
        return np.asarray(np.exp((x + y) @ w.T - norms[..., None]).mean(axis=-1))

    @property
    def denominators(self) -> np.ndarray:
        """(..., Q)"""
        return np.asarray(self.weights.sum(axis=-1))

    @property
    def out(self) -> np.ndarray:
        """(..., Q, V)"""
        least = 0.01 if self.method == "rfa" else 1e-300
        sums = self.weights @ np.nan_to_num(self.value)
        return np.asarray(sums / np.maximum(self.denominators, least)[..., None])


@st.composite
def linear_QND(draw: st.DrawFn, kind: str) -> LinearProblem:
    """Any problem of one of the `KINDS`."""
    method, is_gated = kind.removesuffix("-gated"), kind.endswith("-gated")
    lead_query, lead_key, lead_value, lead = draw(leading_axes())
    queries, keys = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    width, value_width, features = (draw(st.integers(1, 3)) for _ in range(3))
    rng = np.random.default_rng(draw(seeds))
    options: dict[str, Any] = {"scale": draw(st.sampled_from([None, 1.0, 0.3, -0.5]))}
    if is_gated or draw(st.booleans()):
        options["is_causal"] = True
        if queries != keys or draw(st.booleans()):
            options["query_offset"] = draw(st.integers(-2, keys + 1))
    query, key = _rows(rng, (*lead_query, queries, width)), _rows(rng, (*lead_key, keys, width))
    value = rng.standard_normal((*lead_value, keys, value_width))
    gate = None
    if is_gated:
        own = lead[draw(st.integers(0, len(lead))) :]
        gate = rng.uniform(0.05, 0.95, (*own, keys))
    if draw(st.booleans()):
        own = lead[draw(st.integers(0, len(lead))) :]
        mask: np.ndarray = draw(hnp.arrays(bool, (*own, 1, keys)))
        if draw(st.booleans()):
            mask = np.asarray(mask[(0,) * len(own)])
            key[..., ~mask[0], :] = np.nan
            value[..., ~mask[0], :] = np.inf
            if gate is not None:
                gate[..., ~mask[0]] = np.nan
        options["mask"] = mask
    elif draw(st.booleans()):
        options["key_lengths"] = draw(st.integers(0, keys))
        if draw(st.booleans()) and lead:
            options["key_lengths"] = rng.integers(0, keys + 1, size=lead)
    return LinearProblem(
        method,
        query,
        key,
        value,
        gate,
        rng.standard_normal((features, width)),
        options,
        draw(st.integers(1, 4) | st.integers(1, 9)),
        rng.standard_normal((*lead, queries, value_width)),
    )


def _rows(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of lengths from 1/2 to 2: near 0 directions change too fast for differences."""
    x = rng.standard_normal(shape)
    lengths = rng.uniform(0.5, 2, (*shape[:-1], 1))
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True) * lengths)
