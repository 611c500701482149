"""Drawn problems, solved on a device, and what NumPy says of them in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

import topk_np
from topk_np.selftest.device import Device

Rng = np.random.Generator
NOT_MASKS = ("bias", "softcap", "dropout", "query_offset")  # of the options of dense attention


class Run(NamedTuple):
    """Results of a forward and a backward pass, as NumPy arrays."""

    out: np.ndarray
    grads: list[np.ndarray]
    indices: np.ndarray
    """(..., Q, K), what was selected."""


@dataclass(frozen=True)
class Problem:
    """The arguments of one call, and the gradient of its output."""

    kind: str
    """"attention" or "ffn"."""
    inputs: tuple[np.ndarray, ...]
    dout: np.ndarray
    options: dict[str, Any]

    def solve(self, device: Device | None = None, **more: Any) -> Run:
        """Forward and backward on a device, by default NumPy in float64; `more` are options."""
        there = _wide if device is None else device.asarray
        inputs, dout, options = _each_array(
            there, (self.inputs, self.dout, {**self.options, **more})
        )
        forward = getattr(topk_np, f"topk_{self.kind}_fwd")
        backward = getattr(topk_np, f"topk_{self.kind}_bwd")
        out, residuals = forward(*inputs, **options)
        grads = [grad for grad in backward(residuals, dout) if grad is not None]
        arrays = [out, residuals.indices, *grads]
        out, indices, *grads = arrays if device is None else map(device.to_numpy, arrays)
        return Run(out, grads, indices)

    def solve_dense(self, pairs: np.ndarray) -> Run:
        """Dense attention in float64 in which `pairs` (..., Q, N) attend to each other."""
        inputs, options = _each_array(_wide, (self.inputs, self.options))
        kept = {name: options[name] for name in NOT_MASKS if name in options}
        out, residuals = topk_np.dense_attention_fwd(*inputs, mask=pairs, chunk_size=256, **kept)
        grads = topk_np.dense_attention_bwd(residuals, _wide(self.dout))
        return Run(out, [grad for grad in grads if grad is not None], pairs)

    @property
    def pair_shape(self) -> tuple[int, int]:
        """Q and N, the numbers of queries and keys."""
        return int(self.inputs[0].shape[-2]), int(self.inputs[1].shape[-2])

    def pairs(self, indices: np.ndarray) -> np.ndarray:
        """Boolean (..., Q, N): the pairs that `indices` (..., Q, K) name."""
        _, keys = self.pair_shape
        pairs = np.zeros((*indices.shape[:-1], keys + 1), bool)
        np.put_along_axis(pairs, np.where(indices < 0, keys, indices), True, axis=-1)
        return pairs[..., :keys]


def draw_attention(
    rng: Rng, dtype: str, longest: int, *, whole: bool = False, k: int | None = None
) -> Problem:
    """Attention of some heads on shared or own keys, with or without each kind of mask."""
    heads, queries, keys = (int(rng.integers(1, most)) for most in (4, longest // 4 + 2, longest))
    width, value_width = (int(rng.integers(1, 65)) for _ in range(2))
    options: dict[str, Any] = {"k": int(rng.integers(1, keys + 2)) if k is None else k}
    if rng.random() < 0.4:
        options |= {"is_causal": True}
    if rng.random() < 0.3:
        options |= {"window": (int(rng.integers(keys)), int(rng.integers(keys)))}
    if rng.random() < 0.4:
        options |= {"mask": rng.random((queries, keys)) < 0.8}
    if options.keys() & {"is_causal", "window"}:
        options |= {"query_offset": int(rng.integers(keys))}
    if rng.random() < 0.5:
        options |= {"chunk_size": int(rng.integers(1, queries + 1))}
    own = int(rng.choice([1, heads]))
    shapes = [(heads, queries, width), (own, keys, width), (own, keys, value_width)]
    *inputs, dout = (_draw(rng, s, dtype, whole) for s in [*shapes, (heads, queries, value_width)])
    return Problem("attention", tuple(inputs), dout, options)


def draw_options(rng: Rng, dtype: str, longest: int) -> Problem:
    """Attention with options beside masks: biases, caps, lengths, dropout, keys always kept."""
    problem = draw_attention(rng, dtype, longest)
    heads, queries, keys = problem.dout.shape[0], *problem.pair_shape
    more: dict[str, Any] = {
        "bias": _draw(rng, (heads, queries, keys), dtype, False),
        "softcap": float(rng.integers(1, 20)),
        "dropout": (0.3, int(rng.integers(1000))),
        "key_lengths": rng.integers(0, keys + 1, heads),
        "always_keep": (int(rng.integers(3)), int(rng.integers(3))),
    }
    more = {name: option for name, option in more.items() if rng.random() < 0.6}
    offset = problem.options.get("query_offset", int(rng.integers(keys)))
    return replace(problem, options={**problem.options, **more, "query_offset": offset})


def draw_ffn(rng: Rng, dtype: str, longest: int) -> Problem:
    """
    A feed-forward layer, plain or gated.

    Of whole numbers of quarters, so that scores are exact and what is selected is certain. Smooth
    activations are not, so that k covers all units where units are ranked by these.
    """
    tokens, units = int(rng.integers(1, longest // 4 + 2)), int(rng.integers(1, longest))
    width, value_width = (int(rng.integers(1, 65)) for _ in range(2))
    activations = ("gelu", "gelu_tanh", "identity", "relu", "silu", "softmax")
    options: dict[str, Any] = {
        "k": int(rng.integers(1, units + 2)),
        "activation": str(rng.choice(activations)),
        "select": str(rng.choice(["score", "activation"])),
    }
    if options["select"] == "activation" and options["activation"] not in ("identity", "relu"):
        options["k"] = units
    optional = {"gate": (units, width), "key_bias": (units,), "value_bias": (value_width,)}
    options |= {
        n: _draw(rng, s, dtype, True) / 4 for n, s in optional.items() if rng.random() < 0.5
    }
    shapes = [(tokens, width), (units, width), (units, value_width), (tokens, value_width)]
    *inputs, dout = (_draw(rng, shape, dtype, True) / 4 for shape in shapes)
    return Problem("ffn", tuple(inputs), dout, options)


def _draw(rng: Rng, shape: tuple[int, ...], dtype: str, whole: bool) -> np.ndarray:
    drawn = rng.integers(-2, 3, shape) if whole else rng.standard_normal(shape)
    return drawn.astype(dtype)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _each_array(function: Callable[[np.ndarray], Any], given: Any) -> Any:
    """`given`, a value, a tuple or a dict of values, with `function` of the arrays in it."""
    if isinstance(given, tuple):
        return tuple(_each_array(function, value) for value in given)
    if isinstance(given, dict):
        return {name: _each_array(function, value) for name, value in given.items()}
    return function(given) if isinstance(given, np.ndarray) else given
