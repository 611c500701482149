"""Llama-family language models: forward pass, dense or top-k, on any array library.

Shapes: `...` batch axes, Q positions, D model width, H heads, G groups of heads that share a key
and value, W head width, F feed-forward width, T tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from array_api_compat import device

from topk_np import (
    KVCache,
    array_namespace,
    dense_attention,
    dense_ffn,
    topk_attention,
    topk_ffn,
)
from topk_np._namespace import Array, Namespace
from topk_np.activations import ACTIVATIONS
from topk_np.layers.heads import merge_heads, split_heads
from topk_np.layers.linear import linear
from topk_np.layers.rope import Rope, RopeLayout, Rotation
from topk_np.models.per_layer import LayerK, per_layer

Attention = Callable[[Array, Array, Array], Array]  # (query, key, value) -> out

CHUNK = 128  # positions at a time in attention and dense feed-forward layers, shared by threads


@dataclass(frozen=True)
class LlamaConfig:
    """What the weights do not say themselves.

    Attributes
    ----------
    heads, groups : int
        Query heads H, and groups G that share one key and value head.
    norm_eps : float
        Added to the mean square in RMSNorm.
    rope_base : float
        Base of the rotary positions' wavelengths.
    rope_layout : {"half", "interleaved"}
        Which two features form a rotated pair: i and i + W/2 (safetensors checkpoints), or
        2i and 2i + 1 (GGUF files).
    context : int
        Longest sequence the model was trained for.
    """

    heads: int
    groups: int
    norm_eps: float
    rope_base: float
    rope_layout: RopeLayout
    context: int


@dataclass(frozen=True)
class LlamaLayer:
    """Weights of one block. Projections have shape (out, in), as checkpoints store them.

    `gate`, `up` (F, D) and `down` (F, D) are the feed-forward layer; `down` has one row a unit, as
    `topk_ffn` wants it.
    """

    attention_norm: Array
    query: Array
    key: Array
    value: Array
    output: Array
    ffn_norm: Array
    gate: Array
    up: Array
    down: Array


@dataclass(frozen=True)
class LlamaParams:
    """A whole model: embedding (T, D), blocks, final norm (D,) and output layer `head` (T, D)."""

    config: LlamaConfig
    embedding: Array
    layers: tuple[LlamaLayer, ...]
    norm: Array
    head: Array


def forward(
    params: LlamaParams,
    tokens: Array,
    /,
    *,
    attention_k: LayerK = None,
    ffn_k: LayerK = None,
    attention: Attention | None = None,
    caches: Sequence[KVCache] | None = None,
    workers: int | None = None,
) -> Array:
    """
    Hidden states after the last block and its norm.

    Parameters
    ----------
    params : LlamaParams
        The model.
    tokens : integer array (..., Q)
        Token ids. The first position is 0, or with `caches` the one after those they hold.
    attention_k : int, sequence or mapping, optional
        Keys kept per query, one number for all layers or one for each (`LayerK`); dense by default.
    ffn_k : int, sequence or mapping, optional
        Feed-forward units kept per position, those of the largest absolute activation, likewise.
    attention : callable, optional
        Used in place of the library's causal attention, called once a layer, first layer first,
        with query (..., G, H/G, Q, W) and key and value (..., G, 1, N, W); the queries are the last
        Q of the N positions.
    caches : sequence of KVCache, optional
        One a layer, all of one length. The keys and values of `tokens` are appended, and `tokens`
        attend to all that is there.
    workers : int, optional
        Threads, passed on.

    Returns
    -------
    array (..., Q, D)
        Of the weights' dtype.

    Raises
    ------
    TypeError
        If the tokens are not integers, or not of the weights' array library, or a k is not an
        integer.
    ValueError
        If a token is outside the vocabulary, a k is below 1 or does not fit the layers, both
        `attention` and `attention_k` are given, or the caches do not fit the model or each other.

    Notes
    -----
    Memory is linear in Q, dense or top-k.
    """
    config, depth = params.config, len(params.layers)
    ks = per_layer("attention_k", attention_k, depth), per_layer("ffn_k", ffn_k, depth)
    if attention is not None and attention_k is not None:
        raise ValueError(f"attention_k must be None where attention is given, got {attention_k}")
    first = 0 if caches is None else _cached_length(caches, depth)
    x = _embed(params, tokens)
    stop = first + x.shape[-2]
    positions = array_namespace(x).arange(first, stop, device=device(x))
    width = params.layers[0].query.shape[0] // config.heads
    rope = Rope(config.rope_base, config.rope_layout)
    rotation = Rotation.at(positions, rope, width, x.dtype)
    for i, (layer, k, units) in enumerate(zip(params.layers, *ks, strict=True)):
        attend = attention or partial(causal_attention, k=k, workers=workers)
        cache = None if caches is None else caches[i]
        normed = rms_norm(x, layer.attention_norm, config.norm_eps)
        x = x + _attention_block(layer, config, normed, rotation, attend, cache)
        normed = rms_norm(x, layer.ffn_norm, config.norm_eps)
        x = x + gated_ffn(layer, normed, k=units, workers=workers)
    return rms_norm(x, params.norm, config.norm_eps)


def causal_attention(
    query: Array, key: Array, value: Array, /, *, k: int | None, workers: int | None = None
) -> Array:
    """
    Causal attention: top-k, or dense where `k` is None.

    The queries are the last Q of the N positions that keys and values are of.
    """
    if query.shape[-2] == 1:
        # The last position sees every key: the heads of a group are so many queries of one head.
        xp = array_namespace(query)
        heads = xp.moveaxis(query, -2, -3)
        if k is None:
            out = dense_attention(heads, key, value, workers=workers)
        else:
            out = topk_attention(heads, key, value, k=k, workers=workers)
        return xp.moveaxis(out, -3, -2)
    options: dict[str, Any] = {
        "is_causal": True,
        "query_offset": key.shape[-2] - query.shape[-2],
        "chunk_size": CHUNK,
        "workers": workers,
    }
    if k is None:
        return dense_attention(query, key, value, **options)
    return topk_attention(query, key, value, k=k, **options)


def gated_ffn(
    layer: LlamaLayer, x: Array, /, *, k: int | None, workers: int | None = None
) -> Array:
    """The SwiGLU layer, silu(x gateᵀ) * (x upᵀ) times down: all units, or the k most active."""
    if k is None and math.prod(x.shape[:-1]) == 1:
        # One row needs no chunks, and BLAS may share its products, which are bound by memory.
        gate, up = linear(x, layer.gate, None), linear(x, layer.up, None)
        return ACTIVATIONS["silu"].value(gate) * up @ layer.down
    if k is None:
        return dense_ffn(
            x,
            layer.up,
            layer.down,
            gate=layer.gate,
            activation="silu",
            chunk_size=CHUNK,
            workers=workers,
        )
    return topk_ffn(
        x,
        layer.up,
        layer.down,
        k=k,
        gate=layer.gate,
        activation="silu",
        select="activation",
        workers=workers,
    )


def logits(params: LlamaParams, hidden: Array, /) -> Array:
    """Unnormalised log probabilities (..., Q, T) of the next token from `hidden` (..., Q, D)."""
    return hidden @ array_namespace(hidden).matrix_transpose(params.head)


def rms_norm(x: Array, weight: Array, eps: float, /) -> Array:
    """Scale each row of `x` (..., D) to mean square 1, then by `weight` (D,)."""
    xp = array_namespace(x, weight)
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def check_tokens(params: LlamaParams, tokens: Array, /) -> Namespace:
    """Check that `tokens` are ids of the model's vocabulary; return their array library."""
    xp = array_namespace(params.embedding, tokens)
    if not xp.isdtype(tokens.dtype, "integral"):
        raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
    if tokens.ndim < 1 or 0 in tokens.shape:
        raise ValueError(f"tokens must have shape (..., Q) and no empty axis, got {tokens.shape}")
    size = params.embedding.shape[0]
    low, high = int(xp.min(tokens)), int(xp.max(tokens))
    if low < 0 or high >= size:
        raise ValueError(f"tokens must lie in 0 .. {size - 1}, got {low} .. {high}")
    return xp


def _embed(params: LlamaParams, tokens: Array) -> Array:
    xp = check_tokens(params, tokens)
    rows = xp.take(params.embedding, xp.reshape(tokens, (-1,)), axis=0)
    return xp.reshape(rows, (*tokens.shape, rows.shape[-1]))


def _cached_length(caches: Sequence[KVCache], layers: int) -> int:
    """How many positions every one of the caches holds."""
    lengths = sorted({len(cache) for cache in caches})
    if len(caches) != layers:
        raise ValueError(f"caches must be one for each of {layers} layers, got {len(caches)}")
    if len(lengths) > 1:
        raise ValueError(f"caches must all have the same length, got {lengths}")
    return lengths[0]


def _attention_block(
    layer: LlamaLayer,
    config: LlamaConfig,
    x: Array,
    rotation: Rotation,
    attend: Attention,
    cache: KVCache | None,
) -> Array:
    """Project, turn by position, attend in groups of heads to all so far, and project back."""
    xp = array_namespace(x)

    def split(projection: Array, heads: int) -> Array:
        """(..., Q, D) -> (..., G, heads of a group, Q, W)."""
        return split_heads(x @ xp.matrix_transpose(projection), heads, groups=config.groups)

    query = rotation.turn(split(layer.query, config.heads))
    key = rotation.turn(split(layer.key, config.groups))
    value = split(layer.value, config.groups)
    if cache is not None:
        cache.append(key, value)
        key, value = cache.key, cache.value
    out = attend(query, key, value)
    return merge_heads(out, grouped=True) @ xp.matrix_transpose(layer.output)
