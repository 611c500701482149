"""T5-family encoder-decoder models, v1.0 and v1.1: forward, and the loss with its gradients.

Shapes: `...` batch axes, Q positions of the decoder, N of the encoder, D model width, H heads,
W head width, B buckets of distances, F feed-forward width, T tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from topk_np import KVCache, T5Bias
from topk_np._namespace import Array, array_namespace
from topk_np.layers import embedding_bwd, embedding_fwd, linear, rms_norm_bwd, rms_norm_fwd
from topk_np.layers.attention_kinds import bias_shape, group_options
from topk_np.models.blocks import Block, StackResiduals, stack, stack_bwd, stack_fwd
from topk_np.models.family import (
    ACTIVATION_NAMES,
    Decoder,
    Examples,
    Family,
    Fields,
    Layout,
    Name,
    check,
)
from topk_np.models.model import (
    Keep,
    LayerK,
    Model,
    Params,
    check_keep,
    check_mask,
    check_tokens,
    kept_of,
    output_layer,
    per_layer,
)
from topk_np.models.names import T5_ATTENTION
from topk_np.models.scoring import NextTokens, guesses
from topk_np.models.sublayers import Heads, Units
from topk_np.models.token_loss import (
    IGNORED,
    TokenLossResiduals,
    token_loss_bwd,
    token_loss_fwd,
)
from topk_np.schedule.threads import WorkerTeam, lasting
from topk_np.training.trees import flatten

__all__ = ["T5Config", "decode", "encode", "logits", "loss_bwd", "loss_fwd", "shift_right"]

Caches = Sequence[tuple[KVCache, KVCache]]
"""For each layer of the decoder one of its own positions, and one of the encoder's."""

PARTS = {"attention_k": ("encoder", "decoder", "cross"), "ffn_k": ("encoder", "decoder")}


@dataclass(frozen=True)
class T5Config:
    """Numbers and rules of a T5 model that cannot be read off its weights.

    Attributes
    ----------
    heads : int
        Attention heads.
    norm_eps : float
        Added to the mean square in RMSNorm.
    activation : {"relu", "gelu", "gelu_tanh", "silu"}
        Of the feed-forward layers, which are gated if they have a gate.
    max_distance : int
        Distances of at least this share the last bucket.
    output_scale : float
        Factor of the output layer's input: D ** -0.5 where that layer is tied to the embedding.
    start, padding : int
        The token before the decoder's first, and the one at padding.
    """

    heads: int
    norm_eps: float
    activation: str
    max_distance: int
    output_scale: float
    start: int
    padding: int


T5: TypeAlias = Model[T5Config]
"""
Its parameters: ``embedding`` (T, D); ``encoder`` and ``decoder``, each with ``bias`` (B, H),
``layers`` and ``norm`` (D,); and ``head`` (T, D) if that is not tied to the embedding. A layer has
``attention_norm``, ``attention`` with ``query``, ``key`` and ``value`` (H W, D) and ``out``
(D, H W), in the decoder ``cross_norm`` and ``cross`` likewise, ``ffn_norm``, and ``ffn`` with
``keys``, ``values`` and from v1.1 on ``gate`` (F, D).
"""


HARMLESS = {
    "dropout_rate": "there is no dropout in inference, nor in training here",
    "n_positions": "positions are relative, so that there is no limit",
}

# Copies of the embedding, and a table that old checkpoints have and no model uses.
IGNORED_TENSORS = (
    r"(encoder|decoder)\.embed_tokens\.weight",
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)


def layout(fields: Fields, tensors: Collection[str], /) -> Layout:
    """
    Read the config of a checkpoint.

    Raises
    ------
    ValueError
        If a field is missing, or the model has a part that is not computed here.
    """
    projection = str(fields.get("feed_forward_proj", "relu"))
    gated, activation = projection.startswith("gated-"), projection.removeprefix("gated-")
    check("feed_forward_proj", activation, *ACTIVATION_NAMES)
    if gated and activation == "gelu":
        activation = "gelu_new"  # as v1.1 means it, whatever its configs say
    activation = fields.get("dense_act_fn") or activation  # which transformers obeys
    check("dense_act_fn", activation, *ACTIVATION_NAMES)
    check("is_gated_act", fields.get("is_gated_act", gated), None, gated)
    check("is_decoder", fields.get("is_decoder", False), None, False)
    heads, width = fields.number("num_heads"), fields.number("d_model")
    tied = bool(fields.get("tie_word_embeddings", True))
    scaled = fields.get("scale_decoder_outputs", tied)
    start, padding = fields.get("decoder_start_token_id"), fields.get("pad_token_id") or 0
    return Layout(
        T5Config(
            heads=heads,
            norm_eps=fields.positive("layer_norm_epsilon", 1e-6),
            activation=ACTIVATION_NAMES[activation],
            max_distance=fields.number("relative_attention_max_distance", 128),
            output_scale=width**-0.5 if scaled else 1.0,
            start=padding if start is None else start,
            padding=padding,
        ),
        _names(fields, tensors, gated=gated, tied=tied),
        sizes={
            "T": fields.number("vocab_size"),
            "D": width,
            "F": fields.number("d_ff"),
            "Q": heads * fields.number("d_kv"),
            "B": fields.number("relative_attention_num_buckets"),
            "H": heads,
        },
        ignored=(*IGNORED_TENSORS, *((r"lm_head\.weight",) if tied else ())),
    )


def _names(fields: Fields, tensors: Collection[str], *, gated: bool, tied: bool) -> list[Name]:
    """The tensor of each parameter."""
    depth = fields.depth("num_layers", tensors)
    given = fields.get("num_decoder_layers")
    depths = {
        "encoder": depth,
        "decoder": depth if given is None else fields.depth("num_decoder_layers", tensors),
    }
    names = [Name("embedding", "shared.weight", "T D")]
    for part, layers in depths.items():
        first = f"{part}.block.0.layer.0.SelfAttention"
        names.append(Name(f"{part}.bias", f"{first}.relative_attention_bias.weight", "B H"))
        for i in range(layers):
            names += _layer(f"{part}.layers.{i}", f"{part}.block.{i}.layer", part, gated=gated)
        names.append(Name(f"{part}.norm", f"{part}.final_layer_norm.weight", "D"))
    return names if tied else [*names, Name("head", "lm_head.weight", "T D")]


def _layer(path: str, tensor: str, part: str, *, gated: bool) -> list[Name]:
    attentions = {"attention": "SelfAttention"}
    if part == "decoder":
        attentions["cross"] = "EncDecAttention"
    names = []
    for i, (ours, theirs) in enumerate(attentions.items()):
        names.append(Name(f"{path}.{ours}_norm", f"{tensor}.{i}.layer_norm.weight", "D"))
        names += [
            Name(f"{path}.{ours}.{name}", f"{tensor}.{i}.{theirs}.{letter}.weight", shape)
            for name, (letter, shape) in T5_ATTENTION.items()
        ]
    last = f"{tensor}.{len(attentions)}"
    names.append(Name(f"{path}.ffn_norm", f"{last}.layer_norm.weight", "D"))
    inputs = {"gate": "wi_0", "keys": "wi_1"} if gated else {"keys": "wi"}
    for name, theirs in inputs.items():
        names.append(Name(f"{path}.ffn.{name}", f"{last}.DenseReluDense.{theirs}.weight", "F D"))
    names.append(Name(f"{path}.ffn.values", f"{last}.DenseReluDense.wo.weight", "D F", True))
    return names


class LayerKs(NamedTuple):
    """The number of keys and units that each layer keeps."""

    encoder: list[tuple[int | None, int | None]]
    decoder: list[tuple[int | None, int | None, int | None]]
    """Of its own keys, of the encoder's, and of the units."""


def check_ks(model: T5, /) -> LayerKs:
    """The checked number of keys and units that each layer keeps."""
    depth = {part: len(model.params[part]["layers"]) for part in ("encoder", "decoder")}

    def ks(name: str, k: Any, part: str, of: str) -> list[int | None]:
        return per_layer(*_of_part(name, k, part), depth[of])

    attention, units = model.attention_k, model.ffn_k
    return LayerKs(
        list(
            zip(
                ks("attention_k", attention, "encoder", "encoder"),
                ks("ffn_k", units, "encoder", "encoder"),
                strict=True,
            )
        ),
        list(
            zip(
                ks("attention_k", attention, "decoder", "decoder"),
                ks("attention_k", attention, "cross", "decoder"),
                ks("ffn_k", units, "decoder", "decoder"),
                strict=True,
            )
        ),
    )


def _of_part(name: str, k: Any, part: str) -> tuple[str, LayerK]:
    """The k of a part, one for all parts or each its own, after its name in error messages."""
    parts = PARTS[name]
    if not isinstance(k, Mapping) or not k.keys() & set(PARTS["attention_k"]):
        return name, k
    if unknown := k.keys() - set(parts):
        raise ValueError(
            f"{name} must have entries for {', '.join(parts)} only, got {min(map(str, unknown))!r}"
        )
    return f"{name}[{part!r}]", k.get(part)


def _encoder_blocks(
    model: T5, tokens: Array, mask: Array | None, workers: int | Executor | None
) -> list[Block]:
    """The encoder's blocks, for checked tokens and mask."""
    check_tokens(model.params["embedding"], tokens)
    if mask is not None:
        check_mask("mask", mask, tokens)
    how = _heads(model, "encoder", mask, workers)
    return [
        Block(model.config.norm_eps, how(k), _units(model, units, workers))
        for k, units in check_ks(model).encoder
    ]


def _decoder_blocks(
    model: T5,
    tokens: Array,
    encoded: Array,
    mask: Array | None,
    first: int,
    workers: int | Executor | None,
) -> list[Block]:
    """The decoder's blocks, for checked tokens, the first of which has position `first`."""
    check_tokens(model.params["embedding"], tokens)
    if mask is not None:
        check_mask("mask", mask, encoded[..., 0])
    how = _heads(model, "decoder", None, workers, is_causal=True, query_offset=first)
    cross = _heads(model, None, mask, workers)
    return [
        Block(model.config.norm_eps, how(k), _units(model, units, workers), cross(cross_k))
        for k, cross_k, units in check_ks(model).decoder
    ]


def _heads(
    model: T5, part: str | None, mask: Array | None, workers: int | Executor | None, **options: Any
) -> Callable[[int | None], Heads]:
    """The heads of a layer as a function of k; those of a part have its bias by distance."""
    config = model.config
    options |= {"scale": 1.0, "workers": workers}
    if mask is not None:
        options["mask"] = mask[..., None, None, :]
    if part is not None:
        table, both = model.params[part]["bias"], part == "encoder"
        options["bias"] = T5Bias(table, bidirectional=both, max_distance=config.max_distance)
    grouped = group_options(options, config.heads, config.heads)
    shape = bias_shape(options)

    def heads(k: int | None) -> Heads:
        return Heads(config.heads, config.heads, k, grouped, bias_shape=shape)

    return heads


def _units(model: T5, k: int | None, workers: int | Executor | None) -> Units:
    return Units(model.config.activation, k, model.ffn_select, workers)


def encode(
    model: T5, tokens: Array, /, *, mask: Array | None = None, workers: int | Executor | None = None
) -> Array:
    """
    The encoder's hidden states, after its last norm.

    Parameters
    ----------
    model : T5
        The model.
    tokens : integer array (..., N)
        Token ids of the input.
    mask : bool array (..., N), optional
        False at padding, which nothing attends to; all are True by default.
    workers : int or concurrent.futures.Executor, optional
        Threads, passed on.

    Returns
    -------
    array (..., N, D)
        Of the weights' dtype.

    Raises
    ------
    TypeError
        If tokens are not integers, or the mask is not boolean.
    ValueError
        If a token is outside the vocabulary, or a k does not fit the layers.
    """
    blocks = _encoder_blocks(model, tokens, mask, workers)
    x, _ = embedding_fwd(tokens, model.params["embedding"])
    x = stack(blocks, x, model.params["encoder"]["layers"])
    return rms_norm_fwd(x, model.params["encoder"]["norm"], eps=model.config.norm_eps)[0]


def decode(
    model: T5,
    tokens: Array,
    encoded: Array,
    /,
    *,
    mask: Array | None = None,
    caches: Caches | None = None,
    workers: int | Executor | None = None,
) -> Array:
    """
    The decoder's hidden states, after its last norm.

    Parameters
    ----------
    model : T5
        The model.
    tokens : integer array (..., Q)
        Token ids of the output so far, the first of which is ``model.config.start``; with
        `caches`, those that follow what these hold.
    encoded : array (..., N, D)
        From `encode`.
    mask : bool array (..., N), optional
        As for `encode`.
    caches : sequence of pairs of KVCache, optional
        For each layer, of the decoder's positions and of the encoder's. `tokens` are appended; the
        encoder's are computed the first time.
    workers : int or concurrent.futures.Executor, optional
        Threads, passed on.

    Returns
    -------
    array (..., Q, D)
        Of the weights' dtype.

    Raises
    ------
    TypeError, ValueError
        As `encode`.
    """
    first = 0 if caches is None else len(caches[0][0])
    blocks = _decoder_blocks(model, tokens, encoded, mask, first, workers)
    x, _ = embedding_fwd(tokens, model.params["embedding"])
    x = stack(blocks, x, model.params["decoder"]["layers"], encoded, caches=caches)
    return rms_norm_fwd(x, model.params["decoder"]["norm"], eps=model.config.norm_eps)[0]


def logits(model: T5, hidden: Array, /) -> Array:
    """Unnormalised log probabilities (..., Q, T) of the next token from the decoder's states."""
    return linear(hidden * model.config.output_scale, output_layer(model))


class LossResiduals(NamedTuple):
    """The residuals of `loss_fwd`, step by step."""

    encoder: tuple[Any, StackResiduals, Any]
    decoder: tuple[Any, StackResiduals, Any]
    """Of each the embedding, the blocks, and the norm."""
    head: TokenLossResiduals
    model: T5


def loss_fwd(
    model: T5,
    tokens: Array,
    labels: Array,
    /,
    *,
    mask: Array | None = None,
    recompute: bool = False,
    workers: int | Executor | None = None,
) -> tuple[Array, LossResiduals]:
    """
    The loss of each label given the input and the labels before it, and the residuals.

    Parameters
    ----------
    model : T5
        The model.
    tokens, mask, workers
        As for `encode`.
    labels : integer array (..., Q)
        The output wanted; -100, where it ends, does not count.
    recompute : bool, default False
        Keep the inputs of the blocks only, and compute each again in the backward pass.

    Returns
    -------
    loss : array ()
        The mean of -log probability over the labels that count.
    residuals : LossResiduals
        For `loss_bwd`.
    """
    params, eps = model.params, model.config.norm_eps
    outputs = shift_right(model, labels)
    # 1 x = embedding of the input
    # 2 x = blocks of the encoder
    # 3 encoded = norm(x)
    # 4 y = embedding of the labels, one later
    # 5 y = blocks of the decoder, which attend to encoded too
    # 6 y = norm(y) times a scale
    # 7 loss of the label at each position
    blocks = _encoder_blocks(model, tokens, mask, workers)
    x, embedded = embedding_fwd(tokens, params["embedding"])
    x, stacked = stack_fwd(blocks, x, params["encoder"]["layers"], recompute=recompute)
    encoded, normed = rms_norm_fwd(x, params["encoder"]["norm"], eps=eps)
    encoder = embedded, stacked, normed
    blocks = _decoder_blocks(model, outputs, encoded, mask, 0, workers)
    y, embedded = embedding_fwd(outputs, params["embedding"])
    layers = params["decoder"]["layers"]
    y, stacked = stack_fwd(blocks, y, layers, encoded, recompute=recompute)
    y, normed = rms_norm_fwd(y, params["decoder"]["norm"], eps=eps)
    loss, head = token_loss_fwd(y * model.config.output_scale, labels, output_layer(model))
    return loss, LossResiduals(encoder, (embedded, stacked, normed), head, model)


def loss_bwd(residuals: LossResiduals, dout: float = 1.0, /, *, keep: Keep | None = None) -> Params:
    """
    Gradients of `loss_fwd`, in the structure of the model's parameters.

    Parameters
    ----------
    residuals : LossResiduals
        From `loss_fwd`.
    dout : float, default 1.0
        Gradient with respect to the loss.
    keep : mapping from str to callable, optional
        The weights whose gradients are wanted, by their paths such as "encoder.bias", each with a
        function: its result is kept in place of the gradient, block by block. By default all
        gradients, as they are.

    Raises
    ------
    ValueError
        If `keep` has a path that is not that of a weight of the model.
    """
    model = residuals.model
    check_keep(keep, flatten(model.params))
    # 7
    grads = token_loss_bwd(residuals.head, dout)
    # 6
    embedded, stacked, normed = residuals.decoder
    dy, decoder_norm = rms_norm_bwd(normed, grads.hidden * model.config.output_scale)
    # 5
    decoder = stack_bwd(stacked, dy, keep, "decoder.layers")
    # 4
    dembedding = embedding_bwd(embedded, decoder.x)
    # 3
    embedded, stacked, normed = residuals.encoder
    dx, encoder_norm = rms_norm_bwd(normed, decoder.context)
    # 2
    encoder = stack_bwd(stacked, dx, keep, "encoder.layers")
    # 1
    dembedding = dembedding + embedding_bwd(embedded, encoder.x)
    tied = "head" not in model.params
    ends = {
        "embedding": dembedding + grads.head if tied else dembedding,
        "encoder": {"bias": encoder.bias, "norm": encoder_norm},
        "decoder": {"bias": decoder.bias, "norm": decoder_norm},
    }
    found = kept_of(ends if tied else {**ends, "head": grads.head}, keep)
    for part, grads_of in (("encoder", encoder), ("decoder", decoder)):
        if grads_of.layers:
            found[part] = {**found.get(part, {}), "layers": grads_of.layers}
    return {name: found[name] for name in model.params if name in found}


def shift_right(model: T5, labels: Array, /) -> Array:
    """The decoder's input for labels (..., Q): the start token, then all labels but the last."""
    xp = array_namespace(labels)
    start = xp.full_like(labels[..., :1], model.config.start)
    shifted = xp.concat([start, labels[..., :-1]], axis=-1)
    return xp.where(shifted == IGNORED, model.config.padding, shifted)


def _decoder(
    model: T5,
    tokens: Array,
    /,
    *,
    mask: Array | None = None,
    workers: int | Executor | None = None,
) -> Decoder:
    """The model about to write an output for the input `tokens`, which is encoded once."""
    encoded = encode(model, tokens, mask=mask, workers=workers)
    caches = [(KVCache(), KVCache()) for _ in model.params["decoder"]["layers"]]
    pool = lasting(workers)

    def scores(new: Array) -> Array:
        with WorkerTeam(pool):  # BLAS's own threads would wait busily, in the way of ours
            hidden = decode(model, new, encoded, mask=mask, caches=caches, workers=pool)
            return logits(model, hidden)

    start = array_namespace(tokens).full_like(tokens[..., :1], model.config.start)
    return Decoder(start, scores)


def _examples(model: T5, tokens: np.ndarray, rng: np.random.Generator, /) -> Examples:
    """The first half of each plain text as input, and the second half as output."""
    half = tokens.shape[-1] // 2
    return Examples((tokens[..., :half], tokens[..., half:]), tokens[..., half:].size)


def _guess(model: T5, tokens: Array, labels: Array, /) -> tuple[NextTokens, Array]:
    hidden = decode(model, shift_right(model, labels), encode(model, tokens))
    return guesses(partial(logits, model), hidden, labels), labels


FAMILY = Family(
    kind=T5Config,
    types=("t5",),
    layout=layout,
    harmless=HARMLESS,
    check_ks=check_ks,
    loss_fwd=loss_fwd,
    loss_bwd=loss_bwd,
    examples=_examples,
    guess=_guess,
    decoder=_decoder,
)
