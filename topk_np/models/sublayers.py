"""Attention and feed-forward layers of models: with caches, and a k for each layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from topk_np import KVCache, MultiheadWeights, dense_attention_fwd, topk_attention_fwd
from topk_np._namespace import Array
from topk_np.layers import feed_forward_fwd
from topk_np.layers.linear import affine
from topk_np.layers.multihead import MultiheadResiduals, attend_fwd
from topk_np.layers.projections import Projections, split_heads
from topk_np.layers.rope import Rotation
from topk_np.models.model import Params
from topk_np.models.one_row import one_row_ffn
from topk_np.models.variants import GateBiased, projected, with_gate_bias

CHUNK = 256  # positions at a time of dense attention and dense feed-forward layers

Attention = Callable[..., Array]
"""(query, key, value) of grouped heads -> out."""


@dataclass(frozen=True)
class Heads:
    """Settings of the heads of a layer, and their attention."""

    heads: int
    groups: int
    k: int | None
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the attention functions for grouped heads: see `group_options`."""
    rotation: Rotation | None = None
    bias_shape: tuple[int, ...] = ()
    attend: Attention | None = None
    """Used in place of the attention of the library, and without a backward pass."""
    norm_eps: float = 0.0
    """Of the norms of queries and keys, where the weights have such."""

    def __call__(self, query: Array, key: Array, value: Array) -> tuple[Array, Any]:
        """Attention over query (..., G, H/G, Q, W), key and value (..., G, 1, N, W)."""
        if self.attend is not None:
            return self.attend(query, key, value), None
        if self.k is None:
            return dense_attention_fwd(query, key, value, chunk_size=CHUNK, **self.options)
        return topk_attention_fwd(query, key, value, k=self.k, **self.options)


def attention_fwd(
    x: Array,
    params: Params,
    /,
    how: Heads,
    context: Array | None = None,
    *,
    cache: KVCache | None = None,
) -> tuple[Array, MultiheadResiduals]:
    """
    Project, turn by position, attend in groups of heads, and project back.

    With a cache, the keys and values of x are appended, and x attends to all that it holds; a
    `context` only fills an empty cache. The backward pass, without a cache, is
    `multihead_attention_bwd`.
    """
    if cache is not None and context is not None and len(cache):
        weights = MultiheadWeights(**params)
        inputs = Projections(x, weights, context, how.heads, how.groups, None, None)
        rows = affine(x, weights.query, weights.query_bias)
        query = split_heads(rows, how.heads, groups=how.groups)
        key, value = cache.key, cache.value
    else:
        inputs, (query, key, value) = projected(
            x, params, context, how.heads, how.groups, how.rotation, how.norm_eps
        )
        if cache is not None:
            cache.append(key, value)
            key, value = cache.key, cache.value
    return attend_fwd(inputs, (query, key, value), how, how.bias_shape)


@dataclass(frozen=True)
class Units:
    """Settings of a feed-forward layer and the units it keeps."""

    activation: str
    k: int | None
    select: str = "activation"
    workers: int | Executor | None = None


def ffn_fwd(
    x: Array, params: Params, /, how: Units, *, decoding: bool = False
) -> tuple[Array, Any]:
    """All units, or the k best, and residuals for `feed_forward_bwd`: None if `decoding`."""
    options: dict[str, Any] = {"activation": how.activation, "workers": how.workers}
    if how.k is None and decoding and math.prod(x.shape[:-1]) == 1:
        return one_row_ffn(x, params, how.activation, how.workers), None
    if "gate_bias" in params:
        out, part = ffn_fwd(*with_gate_bias(x, params), how)
        return out, GateBiased(part)
    if how.k is not None:
        # Of ReLU's units both rules keep the same, and scores are at hand.
        plain = how.activation == "relu" and "gate" not in params
        select = "score" if plain else how.select
        return feed_forward_fwd(x, params, k=how.k, select=select, **options)
    return feed_forward_fwd(x, params, chunk_size=CHUNK, **options)
