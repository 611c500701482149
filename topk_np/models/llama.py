"""Llama-family language models: forward, and the loss with its gradients, on any array library.

Shapes: `...` batch axes, Q positions, D model width, H heads, G groups of heads that share a key
and value, W head width, F feed-forward width, T tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import device

from topk_np import KVCache, array_namespace, dense_attention, topk_attention
from topk_np._namespace import Array, compute_dtype
from topk_np.layers import embedding_bwd, embedding_fwd, linear, rms_norm_bwd, rms_norm_fwd
from topk_np.layers.rope import Rope, RopeLayout, Rotation
from topk_np.models.blocks import Block, StackResiduals, stack, stack_bwd, stack_fwd
from topk_np.models.family import Decoder, Examples, Family, Fields, Layout, Name, check
from topk_np.models.model import (
    Keep,
    Model,
    Params,
    check_keep,
    check_ks,
    check_tokens,
    kept_of,
    output_layer,
    wants,
)
from topk_np.models.one_row import one_row_linear
from topk_np.models.scoring import NextTokens, next_tokens
from topk_np.models.sublayers import CHUNK, Attention, Heads, Units
from topk_np.models.token_loss import TokenLossResiduals, token_loss_bwd, token_loss_fwd
from topk_np.training.trees import flatten
from topk_np.workers import Crew, lasting

__all__ = ["LlamaConfig", "causal_attention", "forward", "logits", "loss_bwd", "loss_fwd"]


@dataclass(frozen=True)
class LlamaConfig:
    """Numbers and rules of a Llama model that cannot be read off its weights.

    Attributes
    ----------
    heads, groups : int
        Query heads H, and groups G that share one key and value head.
    norm_eps : float
        Added to the mean square in RMSNorm.
    rope_base : float
        Base of the rotary positions' wavelengths.
    rope_layout : {"half", "interleaved"}
        The two features that form a rotated pair: i and i + W/2 (safetensors checkpoints), or
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

LAYER = {  # the tensors of a layer by path, each with its shape
    "attention_norm": ("input_layernorm", "D"),
    "attention.query": ("self_attn.q_proj", "Q D"),
    "attention.key": ("self_attn.k_proj", "K D"),
    "attention.value": ("self_attn.v_proj", "K D"),
    "attention.out": ("self_attn.o_proj", "D Q"),
    "ffn_norm": ("post_attention_layernorm", "D"),
    "ffn.gate": ("mlp.gate_proj", "F D"),
    "ffn.keys": ("mlp.up_proj", "F D"),
    "ffn.values": ("mlp.down_proj", "D F"),
}


def layout(fields: Fields, tensors: Collection[str], /) -> Layout:
    """
    Read the config of a checkpoint.

    Raises
    ------
    ValueError
        If a field is missing, or the model has a part that is not computed here.
    """
    check("hidden_act", fields.get("hidden_act", "silu"), "silu")
    check("attention_bias", fields.get("attention_bias", False), False)
    check("mlp_bias", fields.get("mlp_bias", False), False)
    heads = fields.number("num_attention_heads")
    groups = fields.number("num_key_value_heads", heads)
    if heads % groups:
        raise ValueError(f"the key heads must divide the {heads} query heads, got {groups}")
    width = fields.number("hidden_size")
    head = fields.number("head_dim", max(1, width // heads))
    tied = bool(fields.get("tie_word_embeddings"))
    return Layout(
        LlamaConfig(
            heads=heads,
            groups=groups,
            norm_eps=fields.positive("rms_norm_eps"),
            rope_base=_rope_base(fields),
            rope_layout="half",
            context=fields.number("max_position_embeddings"),
        ),
        names(tensors, fields.depth("num_hidden_layers", tensors), tied=tied),
        sizes={
            "T": fields.number("vocab_size"),
            "D": width,
            "F": fields.number("intermediate_size"),
            "Q": heads * head,
            "K": groups * head,
        },
        # the first follows from the config
        ignored=(r".*rotary_emb\.inv_freq", *((r"lm_head\.weight",) if tied else ())),
    )


def names(tensors: Collection[str], depth: int, /, *, tied: bool) -> list[Name]:
    """The tensor of each parameter; a model without a head has no prefix before its names."""
    prefix = "" if "embed_tokens.weight" in tensors else "model."
    found = [Name("embedding", f"{prefix}embed_tokens.weight", "T D")]
    for i in range(depth):
        for path, (tensor, shape) in LAYER.items():
            full = f"{prefix}layers.{i}.{tensor}.weight"
            found.append(Name(f"layers.{i}.{path}", full, shape, path == "ffn.values"))
    found.append(Name("norm", f"{prefix}norm.weight", "D"))
    return found if tied else [*found, Name("head", "lm_head.weight", "T D")]


def _rope_base(fields: Fields) -> float:
    """The base of the rotary positions, which newer configs have among ``rope_parameters``."""
    base = fields.positive("rope_theta", 10_000.0)
    check("partial_rotary_factor", fields.get("partial_rotary_factor", 1), None, 1)
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.table(name)
        if any(isinstance(value, dict) for value in rope.values()):
            raise ValueError(
                f"{name} must be the same in all layers for this reader, got {dict(rope)}"
            )
        check("rope_type", rope.get("rope_type", rope.get("type", "default")), "default")
        check("partial_rotary_factor", rope.get("partial_rotary_factor", 1), None, 1)
        base = rope.positive("rope_theta", base)
    return base


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

    The queries are the last Q of the N positions of keys and values.
    """
    if k is not None and k >= key.shape[-2]:
        k = None  # which gives the same with less work
    if query.shape[-2] == 1:
        # The last position sees every key: the heads of a group are queries of one head.
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


def _blocks(
    model: Llama,
    tokens: Array,
    first: int,
    workers: int | Executor | None,
    *,
    attention: Attention | None = None,
    backward: bool = False,
) -> list[Block]:
    """The blocks for `tokens`, whose first position is `first`; residuals only for `backward`."""
    config, params = model.config, model.params
    table = params["embedding"]
    xp = array_namespace(table)
    width = params["layers"]["0"]["attention"]["query"].shape[0] // config.heads
    positions = xp.arange(first, first + tokens.shape[-1], device=device(tokens))
    rope = Rope(config.rope_base, config.rope_layout)
    rotation = Rotation.at(positions, rope, width, compute_dtype(xp, table))
    options = {"is_causal": True, "query_offset": first, "workers": workers}
    blocks = []
    for k, units in check_ks(model):
        attend = attention
        if attend is None and not backward:
            attend = partial(causal_attention, k=k, workers=workers)
        heads = Heads(config.heads, config.groups, k, options, rotation, attend=attend)
        blocks.append(
            Block(config.norm_eps, heads, Units("silu", units, model.ffn_select, workers))
        )
    return blocks


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
    blocks = _blocks(model, tokens, first, workers, attention=attention)
    x, _ = embedding_fwd(tokens, model.params["embedding"])
    x = stack(
        blocks,
        x,
        model.params["layers"],
        caches=None if caches is None else [(cache,) for cache in caches],
    )
    return rms_norm_fwd(x, model.params["norm"], eps=model.config.norm_eps)[0]


def _cached_length(caches: Sequence[KVCache], layers: int) -> int:
    """The number of positions that every one of the caches holds."""
    lengths = sorted({len(cache) for cache in caches})
    if len(caches) != layers:
        raise ValueError(f"caches must be one for each of {layers} layers, got {len(caches)}")
    if len(lengths) > 1:
        raise ValueError(f"caches must all have the same length, got {lengths}")
    return lengths[0]


def logits(model: Llama, hidden: Array, /) -> Array:
    """Unnormalised log probabilities (..., Q, T) of the next token from `hidden` (..., Q, D)."""
    return linear(hidden, output_layer(model))


@dataclass(frozen=True, eq=False)
class LlamaLossResiduals:
    """The residuals of `loss_fwd`, step by step."""

    embedding: Any = field(repr=False)
    stack: StackResiduals = field(repr=False)
    norm: Any = field(repr=False)
    head: TokenLossResiduals = field(repr=False)
    paths: frozenset[str] = field(repr=False)
    """Of all weights; without "head" the output layer is the embedding."""


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
    Next-token loss, and the residuals that `loss_bwd` needs.

    Parameters
    ----------
    model : Llama
        The model.
    tokens : integer array (..., Q)
        Token ids, at least 2.
    labels : integer array (..., Q), optional
        The token that should stand at each position, by default `tokens`; -100 does not count.
    recompute : bool, default False
        Keep the inputs of the blocks only, and compute each block again in the backward pass: a
        third more time, and memory for the residuals of one block.
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
    Logits are computed a few positions at a time, here and in the backward pass.
    """
    params, eps = model.params, model.config.norm_eps
    check_tokens(params["embedding"], tokens, least=2)
    labels = tokens if labels is None else labels
    blocks = _blocks(model, tokens, 0, workers, backward=True)
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
        The weights whose gradients are wanted, by their paths such as "layers.0.ffn.keys", each
        with a function: its result is kept in place of the gradient, block by block. By default
        all gradients, as they are.

    Raises
    ------
    ValueError
        If `keep` has a path that is not that of a weight of the model.
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


def _decoder(
    model: Llama, tokens: Array, /, *, mask: Array | None, workers: int | Executor | None
) -> Decoder:
    """The model about to continue `tokens`, with caches of the keys and values."""
    if mask is not None:
        raise ValueError("mask must be None for a Llama model")
    check_tokens(model.params["embedding"], tokens)
    check_ks(model)
    caches = [KVCache() for _ in model.params["layers"]]
    pool = lasting(workers)

    def scores(new: Array) -> Array:
        if new.shape[-1] > 1:
            hidden = forward(model, new, caches=caches, workers=workers)
            return logits(model, hidden[..., -1:, :])
        # BLAS's own threads would wait busily for the next product, in the way of ours.
        with Crew(pool):
            hidden = forward(model, new, caches=caches, workers=pool)
            return one_row_linear(hidden, output_layer(model), pool)

    return Decoder(tokens, scores, model.config.context - tokens.shape[-1])


def _examples(model: Llama, tokens: np.ndarray, rng: np.random.Generator, /) -> Examples:
    """Plain text as it is: every token but the first is to be predicted."""
    return Examples((tokens,), tokens[..., 1:].size)


def _guess(model: Llama, tokens: Array, /) -> tuple[NextTokens, Array]:
    return next_tokens(model, forward(model, tokens), tokens), tokens[..., 1:]


FAMILY = Family(
    kind=LlamaConfig,
    types=("llama",),
    layout=layout,
    check_ks=check_ks,
    loss_fwd=loss_fwd,
    loss_bwd=loss_bwd,
    examples=_examples,
    guess=_guess,
    decoder=_decoder,
    context=lambda model: model.config.context,
)
