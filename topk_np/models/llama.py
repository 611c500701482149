"""Llama-family language models: forward pass, dense or top-k, on any array library.

Shapes: `...` batch axes, Q positions, D model width, H heads, G groups of heads that share a key
and value, W head width, F feed-forward width, T tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from array_api_compat import device

from topk_np import (
    array_namespace,
    dense_attention,
    dense_ffn,
    topk_attention,
    topk_ffn,
)
from topk_np.layers.heads import merge_heads, split_heads
from topk_np.layers.rope import Rope, RopeLayout, Rotation

Array = Any  # an array of any library that follows the array API
Attention = Callable[[Array, Array, Array], Array]  # (query, key, value) -> out

CHUNK = 128  # positions at a time in attention and dense feed-forward layers, shared by threads
VOCABULARY_CHUNK = 256  # positions at a time in the output layer: never Q x T logits


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


class NextTokens(NamedTuple):
    """How well each token was foreseen from those before it; both fields are (..., Q - 1)."""

    loss: Array  # -log probability of the token that came
    best: Array  # the most probable token


def forward(
    params: LlamaParams,
    tokens: Array,
    /,
    *,
    attention_k: int | None = None,
    ffn_k: int | None = None,
    attention: Attention | None = None,
    workers: int | None = None,
) -> Array:
    """
    Hidden states after the last block and its norm.

    Parameters
    ----------
    params : LlamaParams
        The model.
    tokens : integer array (..., Q)
        Token ids, first position 0.
    attention_k : int, optional
        Keys kept per query in every layer; dense by default.
    ffn_k : int, optional
        Feed-forward units kept per position, those of the largest absolute activation; dense by
        default.
    attention : callable, optional
        Used in place of the library's causal attention, called once a layer, first layer first,
        with query (..., G, H/G, Q, W) and key and value (..., G, 1, Q, W).
    workers : int, optional
        Threads, passed on.

    Returns
    -------
    array (..., Q, D)
        Of the weights' dtype.

    Raises
    ------
    TypeError
        If the tokens are not integers, or not of the weights' array library.
    ValueError
        If a token is outside the vocabulary, or both `attention` and `attention_k` are given.

    Notes
    -----
    Memory is linear in Q, dense or top-k.
    """
    if attention is None:
        attention = partial(causal_attention, k=attention_k, workers=workers)
    elif attention_k is not None:
        raise ValueError(f"attention_k must be None where attention is given, got {attention_k}")
    config = params.config
    x = _embed(params.embedding, tokens)
    positions = array_namespace(x).arange(x.shape[-2], device=device(x))
    width = params.layers[0].query.shape[0] // config.heads
    rope = Rope(config.rope_base, config.rope_layout)
    rotation = Rotation.at(positions, rope, width, x.dtype)
    for layer in params.layers:
        normed = rms_norm(x, layer.attention_norm, config.norm_eps)
        x = x + _attention_block(layer, config, normed, rotation, attention)
        normed = rms_norm(x, layer.ffn_norm, config.norm_eps)
        x = x + gated_ffn(layer, normed, k=ffn_k, workers=workers)
    return rms_norm(x, params.norm, config.norm_eps)


def causal_attention(
    query: Array, key: Array, value: Array, /, *, k: int | None, workers: int | None = None
) -> Array:
    """Causal attention from position 0 on: top-k, or dense where `k` is None."""
    if k is None:
        return dense_attention(query, key, value, is_causal=True, chunk_size=CHUNK, workers=workers)
    return topk_attention(query, key, value, k=k, is_causal=True, chunk_size=CHUNK, workers=workers)


def gated_ffn(
    layer: LlamaLayer, x: Array, /, *, k: int | None, workers: int | None = None
) -> Array:
    """The SwiGLU layer, silu(x gateᵀ) * (x upᵀ) times down: all units, or the k most active."""
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


def next_tokens(params: LlamaParams, hidden: Array, tokens: Array, /) -> NextTokens:
    """
    Loss and best guess for every token but the first, from the hidden states of all of them.

    Parameters
    ----------
    params : LlamaParams
        The model.
    hidden : array (..., Q, D)
        From `forward`, or a slice of its positions.
    tokens : integer array (..., Q)
        The tokens at these positions.

    Returns
    -------
    NextTokens
        `loss` and `best`, each (..., Q - 1).
    """
    xp = array_namespace(hidden, tokens)
    losses, best = [], []
    for start in range(0, tokens.shape[-1] - 1, VOCABULARY_CHUNK):
        stop = min(start + VOCABULARY_CHUNK, tokens.shape[-1] - 1)
        scores = logits(params, hidden[..., start:stop, :])
        came = xp.astype(tokens[..., start + 1 : stop + 1, None], xp.int64)
        first = xp.argmax(scores, axis=-1, keepdims=True)
        best.append(first[..., 0])
        top = xp.take_along_axis(scores, first, axis=-1)
        norm = top + xp.log(xp.sum(xp.exp(scores - top), axis=-1, keepdims=True))
        losses.append((norm - xp.take_along_axis(scores, came, axis=-1))[..., 0])
    if not losses:
        raise ValueError(f"tokens must have at least 2 positions, got shape {tokens.shape}")
    return NextTokens(xp.concat(losses, axis=-1), xp.concat(best, axis=-1))


def generate(params: LlamaParams, tokens: Array, count: int, /, **options: Any) -> Array:
    """
    Append `count` tokens to `tokens` (..., Q), each the most probable one.

    `options` go to `forward`, which is run anew for every token.
    """
    xp = array_namespace(tokens)
    for _ in range(count):
        hidden = forward(params, tokens, **options)[..., -1:, :]
        best = xp.argmax(logits(params, hidden), axis=-1)
        tokens = xp.concat([tokens, xp.astype(best, tokens.dtype)], axis=-1)
    return tokens


def rms_norm(x: Array, weight: Array, eps: float, /) -> Array:
    """Scale each row of `x` (..., D) to mean square 1, then by `weight` (D,)."""
    xp = array_namespace(x, weight)
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def _embed(embedding: Array, tokens: Array) -> Array:
    xp = array_namespace(embedding, tokens)
    if not xp.isdtype(tokens.dtype, "integral"):
        raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
    size, width = embedding.shape
    if tokens.ndim < 1 or 0 in tokens.shape:
        raise ValueError(f"tokens must have shape (..., Q) and no empty axis, got {tokens.shape}")
    low, high = int(xp.min(tokens)), int(xp.max(tokens))
    if low < 0 or high >= size:
        raise ValueError(f"tokens must lie in 0 .. {size - 1}, got {low} .. {high}")
    rows = xp.take(embedding, xp.reshape(tokens, (-1,)), axis=0)
    return xp.reshape(rows, (*tokens.shape, width))


def _attention_block(
    layer: LlamaLayer, config: LlamaConfig, x: Array, rotation: Rotation, attend: Attention
) -> Array:
    """Project, turn by position, attend in groups of heads, and project back."""
    xp = array_namespace(x)

    def split(projection: Array, heads: int) -> Array:
        """(..., Q, D) -> (..., G, heads of a group, Q, W)."""
        return split_heads(x @ xp.matrix_transpose(projection), heads, groups=config.groups)

    query = rotation.turn(split(layer.query, config.heads))
    key = rotation.turn(split(layer.key, config.groups))
    out = attend(query, key, split(layer.value, config.groups))
    return merge_heads(out, grouped=True) @ xp.matrix_transpose(layer.output)
