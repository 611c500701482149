"""Blocks of any kind: what is drawn for their tests, and what they are by definition."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.strategies import seeds
from topk_np import dense_attention, merge_heads, split_heads, topk_attention, topk_ffn
from topk_np.baselines import performer_attention, rfa_attention
from topk_np.layers import (
    BlockConfig,
    decoder_block_bwd,
    decoder_block_fwd,
    encoder_block_bwd,
    encoder_block_fwd,
)
from topk_np.layers.attention_kinds import KINDS
from topk_np.training import flatten, tree_map, unflatten

WIDTH, HIDDEN, SOURCE = 4, 5, 3
QUERIES, KEYS = 5, 6


@dataclass(frozen=True)
class Problem:
    """One call of a block, in float64; an encoder block has no context."""

    config: BlockConfig
    params: Any
    x: np.ndarray
    context: np.ndarray | None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that has a gradient, side by side."""
        context = () if self.context is None else (self.context,)
        return (self.x, *context, *flatten(self.params).values())

    def fwd(self, *arrays: Any) -> tuple[Any, Any]:
        """The block's output and residuals, with other arrays in the places of `arrays`."""
        inputs, leaves = arrays[: 1 + (self.context is not None)], arrays[-self.leaves :]
        params = unflatten(dict(zip(flatten(self.params), leaves, strict=True)))
        fwd: Any = encoder_block_fwd if self.context is None else decoder_block_fwd
        out: tuple[Any, Any] = fwd(*inputs, params, self.config, **self.options)
        return out

    def bwd(self, residuals: Any, dout: Any) -> tuple[Any, ...]:
        """The gradients of `arrays`."""
        bwd: Any = encoder_block_bwd if self.context is None else decoder_block_bwd
        *inputs, params = bwd(residuals, dout)
        assert list(flatten(params)) == list(flatten(self.params))
        return (*inputs, *flatten(params).values())

    def out(self, **more: Any) -> np.ndarray:
        """The output, with other fields."""
        problem = replace(self, **more)
        return np.asarray(problem.fwd(*problem.arrays)[0])

    @property
    def leaves(self) -> int:
        return len(flatten(self.params))


def problem(
    config: BlockConfig, *, decoder: bool, gated: bool = False, seed: int = 0, **options: Any
) -> Problem:
    """Two sequences, and parameters none of which is 0 or 1."""
    rng = np.random.default_rng(seed)
    source = SOURCE if decoder else None
    params = config.init(rng, width=WIDTH, hidden=HIDDEN, context_width=source, gated=gated)
    params = tree_map(lambda array: array + 0.5 * rng.standard_normal(array.shape), params)
    x = rng.standard_normal((2, QUERIES, WIDTH))
    context = rng.standard_normal((2, KEYS, SOURCE)) if decoder else None
    return Problem(config, params, x, context, options)


@st.composite
def problems(draw: st.DrawFn, *, decoder: bool | None = None) -> Problem:
    """A block of any kind, with padding or without."""
    decoder = draw(st.booleans()) if decoder is None else decoder
    gated = draw(st.booleans())
    config = BlockConfig(
        heads=draw(st.sampled_from([1, 2])),
        attention=draw(st.sampled_from(list(KINDS))),
        k=draw(st.integers(1, 7)),
        ffn_k=draw(st.none() | st.integers(1, 6)),
        features=6,
        chunk_size=2,
        norm=draw(st.sampled_from(["layer", "rms"])),
        norm_first=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.5])),
        ffn_options={"activation": draw(st.sampled_from(["relu", "gelu", "silu"]))},
    )
    options: dict[str, Any] = {"dropout_seed": draw(st.none() | seeds)}
    if draw(st.booleans()):
        options["lengths"] = np.array([draw(st.integers(1, QUERIES)), QUERIES])
    if decoder and draw(st.booleans()):
        options["context_lengths"] = np.array([KEYS, draw(st.integers(1, KEYS))])
    if not decoder:
        options["is_causal"] = draw(st.booleans())
    return problem(config, decoder=decoder, gated=gated, seed=draw(seeds), **options)


def written_out(problem: Problem) -> np.ndarray:
    """The block of `problem` without dropout, from attention itself, norms in plain NumPy."""
    config, params, options = problem.config, problem.params, problem.options

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        own = params[f"{name}_norm"]
        if config.norm == "rms":
            root = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
            return np.asarray(x / root * own["weight"])
        root = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        return np.asarray((x - x.mean(-1, keepdims=True)) / root * own["weight"] + own["bias"])

    def attention(
        name: str, x: np.ndarray, source: np.ndarray, lengths: Any, is_causal: bool
    ) -> np.ndarray:
        own = params[name]
        heads = [
            split_heads(rows @ own[part].T + own[f"{part}_bias"], config.heads)
            for part, rows in (("query", x), ("key", source), ("value", source))
        ]
        lengths = None if lengths is None else lengths[:, None]
        masks: dict[str, Any] = {"is_causal": is_causal, "key_lengths": lengths}
        random: dict[str, Any] = {"features": config.features, "seed": config.seed}
        made = {
            "dense": lambda: dense_attention(*heads, **masks),
            "chunked": lambda: dense_attention(*heads, **masks),
            "topk": lambda: topk_attention(*heads, k=config.k, **masks),
            "performer": lambda: performer_attention(*heads, **random, **masks),
            "rfa": lambda: rfa_attention(*heads, **random, **masks),
        }[config.attention]()
        return np.asarray(merge_heads(made) @ own["out"].T + own["out_bias"])

    def ffn(x: np.ndarray) -> np.ndarray:
        own = dict(params["ffn"])
        arrays = x, own.pop("keys"), own.pop("values")
        units = HIDDEN if config.ffn_k is None else config.ffn_k
        return np.asarray(topk_ffn(*arrays, k=units, **own, **config.ffn_options))

    def around(name: str, x: np.ndarray, part: Any) -> np.ndarray:
        return x + part(norm(x, name)) if config.norm_first else norm(x + part(x), name)

    lengths, context = options.get("lengths"), problem.context
    causal = context is not None or options.get("is_causal", False)
    x = around(
        "attention", problem.x, lambda rows: attention("attention", rows, rows, lengths, causal)
    )
    if context is not None:
        of_context = options.get("context_lengths")
        x = around("cross", x, lambda rows: attention("cross", rows, context, of_context, False))
    return around("ffn", x, ffn)
