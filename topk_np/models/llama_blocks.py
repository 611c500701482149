"""The blocks of a Llama model, each with its own k, and the attention that they share."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from array_api_compat import device

from topk_np import array_namespace, dense_attention, topk_attention
from topk_np._namespace import Array, compute_dtype
from topk_np.layers.rope import Rope, RopeLayout, Rotation
from topk_np.models.blocks import Block
from topk_np.models.model import Model
from topk_np.models.per_layer import per_layer
from topk_np.models.sublayers import CHUNK, Attention, Heads, Units


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


Llama: TypeAlias = Model[LlamaConfig]
"""
Its parameters: ``embedding`` (T, D), ``layers``, ``norm`` (D,), and ``head`` (T, D) if that is not
tied to the embedding. A layer has ``attention_norm`` (D,), ``attention`` with ``query`` (H W, D),
``key`` and ``value`` (G W, D) and ``out`` (D, H W), ``ffn_norm`` (D,), and ``ffn`` with ``keys``,
``values`` and ``gate`` (F, D), as `topk_ffn` wants them: a row for each unit.
"""


def check_ks(model: Llama, /) -> list[tuple[int | None, int | None]]:
    """The keys and the units that each layer keeps."""
    depth = len(model.params["layers"])
    ks = per_layer("attention_k", model.attention_k, depth)
    return list(zip(ks, per_layer("ffn_k", model.ffn_k, depth), strict=True))


def causal_attention(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    k: int | None,
    workers: int | Executor | None = None,
) -> Array:
    """
    Causal attention: top-k, or dense where `k` is None.

    The queries are the last Q of the N positions that keys and values are of.
    """
    if k is not None and k >= key.shape[-2]:
        k = None  # which is the same, and less to do
    if query.shape[-2] == 1:
        # The last position sees every key: the heads of a group are so many queries of one head.
        xp = array_namespace(query)
        heads = xp.moveaxis(query, -2, -3)
        if k is None:
            out = dense_attention(heads, key, value, workers=workers)
        else:
            out = topk_attention(heads, key, value, k=k, workers=workers)
        return xp.moveaxis(out, -3, -2)
    options = {
        "is_causal": True,
        "query_offset": key.shape[-2] - query.shape[-2],
        "workers": workers,
    }
    if k is None:
        return dense_attention(query, key, value, chunk_size=CHUNK, **options)
    return topk_attention(query, key, value, k=k, **options)


def llama_blocks(
    model: Llama,
    tokens: Array,
    first: int,
    attention: Attention | None,
    way_back: bool,
    workers: int | Executor | None,
) -> list[Block]:
    """
    The blocks for some positions, the first of which is `first`.

    Without a way back attention keeps nothing for it.
    """
    config, params = model.config, model.params
    table = params["embedding"]
    xp = array_namespace(table)
    width = params["layers"]["0"]["attention"]["query"].shape[0] // config.heads
    positions = xp.arange(first, first + tokens.shape[-1], device=device(tokens))
    rope = Rope(config.rope_base, config.rope_layout)
    rotation = Rotation.at(positions, rope, width, compute_dtype(xp, table))
    blocks = []
    for k, units in check_ks(model):
        attend = attention
        if attend is None and not way_back:
            attend = partial(causal_attention, k=k, workers=workers)
        blocks.append(
            Block(
                config.norm_eps,
                replace(
                    _heads(config.heads, config.groups, k, first, workers),
                    rotation=rotation,
                    attend=attend,
                ),
                Units("silu", units, model.ffn_select, workers),
            )
        )
    return blocks


def _heads(
    heads: int, groups: int, k: int | None, offset: int, workers: int | Executor | None
) -> Heads:
    options = {"is_causal": True, "query_offset": offset, "workers": workers}
    return Heads(heads, groups, k, options)
