"""Llama-family language models: forward, and the loss with its gradients, on any array library.

Shapes: `...` batch axes, Q positions, D model width, H heads, G groups of heads that share a key
and value, W head width, F feed-forward width, T tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from array_api_compat import device

from topk_np import KVCache, array_namespace, dense_attention, topk_attention
from topk_np._namespace import Array, compute_dtype
from topk_np.layers import embedding_bwd, embedding_fwd, linear, rms_norm_bwd, rms_norm_fwd
from topk_np.layers.rope import Rope, RopeLayout, Rotation
from topk_np.models.blocks import Block, StackResiduals, stack, stack_bwd, stack_fwd
from topk_np.models.keep import Keep, check_keep, kept_of, wants
from topk_np.models.model import Model, Params
from topk_np.models.per_layer import per_layer
from topk_np.models.sublayers import CHUNK, Attention, Heads, Units
from topk_np.models.token_loss import TokenLossResiduals, token_loss_bwd, token_loss_fwd
from topk_np.models.tokens import check_tokens
from topk_np.training.trees import flatten

__all__ = ["LlamaConfig", "causal_attention", "forward", "logits", "loss_bwd", "loss_fwd"]


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


def forward(
    model: Llama,
    tokens: Array,
    /,
    *,
    attention: Attention | None = None,
    caches: Sequence[KVCache] | None = None,
    workers: int | Executor | None = None,
) -> Array:
    """
    Hidden states after the last block and its norm.

    Parameters
    ----------
    model : Llama
        The model.
    tokens : integer array (..., Q)
        Token ids. The first position is 0, or with `caches` the one after those they hold.
    attention : callable, optional
        Used in place of the library's causal attention, called once a layer, first layer first,
        with query (..., G, H/G, Q, W) and key and value (..., G, 1, N, W); the queries are the last
        Q of the N positions.
    caches : sequence of KVCache, optional
        One a layer, all of one length. The keys and values of `tokens` are appended, and `tokens`
        attend to all that is there.
    workers : int or concurrent.futures.Executor, optional
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
        `attention` and the model's `attention_k` are given, or the caches do not fit the model or
        each other.

    Notes
    -----
    Memory is linear in Q, dense or top-k.
    """
    check_tokens(model.params["embedding"], tokens)
    if attention is not None and model.attention_k is not None:
        raise ValueError(
            f"attention_k must be None where attention is given, got {model.attention_k}"
        )
    first = 0 if caches is None else _cached_length(caches, len(model.params["layers"]))
    blocks = _blocks(model, tokens, first, attention, False, workers)
    x, _ = embedding_fwd(tokens, model.params["embedding"])
    x = stack(
        blocks,
        x,
        model.params["layers"],
        caches=None if caches is None else [(cache,) for cache in caches],
    )
    return rms_norm_fwd(x, model.params["norm"], eps=model.config.norm_eps)[0]


def logits(model: Llama, hidden: Array, /) -> Array:
    """Unnormalised log probabilities (..., Q, T) of the next token from `hidden` (..., Q, D)."""
    return linear(hidden, output_layer(model))


@dataclass(frozen=True, eq=False)
class LlamaLossResiduals:
    """What `loss_bwd` needs, step by step."""

    embedding: Any = field(repr=False)
    stack: StackResiduals = field(repr=False)
    norm: Any = field(repr=False)
    head: TokenLossResiduals = field(repr=False)
    paths: frozenset[str] = field(repr=False)
    """Of all weights; with no "head" that is the embedding."""


def loss_fwd(
    model: Llama,
    tokens: Array,
    labels: Array | None = None,
    /,
    *,
    recompute: bool = False,
    workers: int | Executor | None = None,
) -> tuple[Array, LlamaLossResiduals]:
    """
    How well each token is foreseen from those before it, and what `loss_bwd` needs.

    Parameters
    ----------
    model : Llama
        The model.
    tokens : integer array (..., Q)
        Token ids, at least 2.
    labels : integer array (..., Q), optional
        What should stand at each position, by default `tokens`; -100 does not count.
    recompute : bool, default False
        Keep the inputs of the blocks only, and compute each again in the backward pass: a third
        more time, and memory for the residuals of one block.
    workers : int or concurrent.futures.Executor, optional
        Threads, passed on.

    Returns
    -------
    loss : array ()
        The mean of -log probability over the labels that count.
    residuals : LlamaLossResiduals
        For `loss_bwd`.

    Raises
    ------
    TypeError, ValueError
        As `forward`, and if the labels do not fit the tokens.

    Notes
    -----
    Logits are made a few positions at a time, here and in the backward pass.
    """
    params, eps = model.params, model.config.norm_eps
    check_tokens(params["embedding"], tokens, least=2)
    labels = tokens if labels is None else labels
    blocks = _blocks(model, tokens, 0, None, True, workers)
    # 1 x = embedding of the tokens
    # 2 x = blocks(x)
    # 3 hidden = norm(x)
    # 4 loss of the label that follows each position
    x, embedded = embedding_fwd(tokens, params["embedding"])
    x, stacked = stack_fwd(blocks, x, params["layers"], recompute=recompute)
    hidden, normed = rms_norm_fwd(x, params["norm"], eps=eps)
    loss, head = token_loss_fwd(hidden[..., :-1, :], labels[..., 1:], output_layer(model))
    return loss, LlamaLossResiduals(embedded, stacked, normed, head, frozenset(flatten(params)))


def loss_bwd(
    residuals: LlamaLossResiduals, dout: float = 1.0, /, *, keep: Keep | None = None
) -> Params:
    """
    Gradients of `loss_fwd`, in the structure of the model's parameters.

    Parameters
    ----------
    residuals : LlamaLossResiduals
        From `loss_fwd`.
    dout : float, default 1.0
        Gradient with respect to the loss.
    keep : mapping from str to callable, optional
        Which weights have their gradients wanted, by their paths such as "layers.0.ffn.keys", and
        for each a function: what it makes of the gradient is kept, block by block. By default all,
        as they are.

    Raises
    ------
    ValueError
        If `keep` names what is no weight of the model.
    """
    check_keep(keep, residuals.paths)
    tied = "head" not in residuals.paths
    head = "embedding" if tied else "head"
    # 4
    grads = token_loss_bwd(residuals.head, dout, of_head=wants(keep, head))
    xp = array_namespace(grads.hidden)
    dhidden = xp.concat([grads.hidden, xp.zeros_like(grads.hidden[..., :1, :])], axis=-2)
    # 3
    dx, dnorm = rms_norm_bwd(residuals.norm, dhidden)
    # 2
    stacked = stack_bwd(residuals.stack, dx, keep)
    # 1
    ends: Params = {"norm": dnorm}
    if wants(keep, "embedding"):
        ends["embedding"] = embedding_bwd(residuals.embedding, stacked.x)
    if wants(keep, head):
        ends[head] = ends[head] + grads.head if tied else grads.head
    found = kept_of(ends, keep)
    if stacked.layers:
        found["layers"] = stacked.layers
    return {name: found[name] for name in ("embedding", "layers", "norm", "head") if name in found}


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
        "chunk_size": CHUNK,
        "workers": workers,
    }
    if k is None:
        return dense_attention(query, key, value, **options)
    return topk_attention(query, key, value, k=k, **options)


def check_ks(model: Llama, /) -> list[tuple[int | None, int | None]]:
    """The keys and the units that each layer keeps."""
    depth = len(model.params["layers"])
    ks = per_layer("attention_k", model.attention_k, depth)
    return list(zip(ks, per_layer("ffn_k", model.ffn_k, depth), strict=True))


def output_layer(model: Llama, /) -> Array:
    """(T, D), the embedding where it is tied to that."""
    return model.params.get("head", model.params["embedding"])


def _blocks(
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


def _cached_length(caches: Sequence[KVCache], layers: int) -> int:
    """How many positions every one of the caches holds."""
    lengths = sorted({len(cache) for cache in caches})
    if len(caches) != layers:
        raise ValueError(f"caches must be one for each of {layers} layers, got {len(caches)}")
    if len(lengths) > 1:
        raise ValueError(f"caches must all have the same length, got {lengths}")
    return lengths[0]
