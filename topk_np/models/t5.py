"""T5-family encoder-decoder models, v1.0 and v1.1: forward, and the loss with its gradients.

Shapes: `...` batch axes, Q positions of the decoder, N of the encoder, D model width, H heads,
W head width, B buckets of distances, F feed-forward width, T tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from topk_np import KVCache, T5Bias
from topk_np._namespace import Array, array_namespace
from topk_np.layers import embedding_bwd, embedding_fwd, linear, rms_norm_bwd, rms_norm_fwd
from topk_np.layers.grouping import bias_shape, group_options
from topk_np.models.blocks import Block, StackResiduals, stack, stack_bwd, stack_fwd
from topk_np.models.model import Model, Params
from topk_np.models.per_layer import LayerK, per_layer
from topk_np.models.sublayers import Heads, Units
from topk_np.models.token_loss import (
    IGNORED,
    TokenLossResiduals,
    token_loss_bwd,
    token_loss_fwd,
)
from topk_np.models.tokens import check_mask, check_tokens

__all__ = ["T5Config", "decode", "encode", "logits", "loss_bwd", "loss_fwd", "shift_right"]

Caches = Sequence[tuple[KVCache, KVCache]]
"""For each layer of the decoder one of its own positions, and one of the encoder's."""


@dataclass(frozen=True)
class T5Config:
    """What the weights do not say themselves.

    Attributes
    ----------
    heads : int
        Attention heads.
    norm_eps : float
        Added to the mean square in RMSNorm.
    activation : {"relu", "gelu", "gelu_tanh", "silu"}
        Of the feed-forward layers, which are gated if they have a gate.
    max_distance : int
        From where on all distances share a bucket.
    output_scale : float
        What goes into the output layer is multiplied by this: D ** -0.5 where that is tied to the
        embedding.
    start, padding : int
        The token before the decoder's first, and the one that stands where there is none.
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


class LayerKs(NamedTuple):
    """The keys and units that the layers keep."""

    encoder: list[tuple[int | None, int | None]]
    decoder: list[tuple[int | None, int | None, int | None]]
    """Of its own keys, of the encoder's, and of the units."""


def encode(
    model: T5, tokens: Array, /, *, mask: Array | None = None, workers: int | None = None
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
    workers : int, optional
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
    workers: int | None = None,
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
    workers : int, optional
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
    return linear(hidden * model.config.output_scale, _head(model))


class LossResiduals(NamedTuple):
    """What `loss_bwd` needs, step by step."""

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
    workers: int | None = None,
) -> tuple[Array, LossResiduals]:
    """
    How well each label is foreseen from the input and the labels before it.

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
    loss, head = token_loss_fwd(y * model.config.output_scale, labels, _head(model))
    return loss, LossResiduals(encoder, (embedded, stacked, normed), head, model)


def loss_bwd(residuals: LossResiduals, dout: float = 1.0, /) -> Params:
    """
    Gradients of `loss_fwd`, in the structure of the model's parameters.

    Parameters
    ----------
    residuals : LossResiduals
        From `loss_fwd`.
    dout : float, default 1.0
        Gradient with respect to the loss.
    """
    model = residuals.model
    # 7
    grads = token_loss_bwd(residuals.head, dout)
    # 6
    embedded, stacked, normed = residuals.decoder
    dy, decoder_norm = rms_norm_bwd(normed, grads.hidden * model.config.output_scale)
    # 5
    decoder = stack_bwd(stacked, dy)
    # 4
    dembedding = embedding_bwd(embedded, decoder.x)
    # 3
    embedded, stacked, normed = residuals.encoder
    dx, encoder_norm = rms_norm_bwd(normed, decoder.context)
    # 2
    encoder = stack_bwd(stacked, dx)
    # 1
    dembedding = dembedding + embedding_bwd(embedded, encoder.x)
    tied = "head" not in model.params
    found = {
        "embedding": dembedding + grads.head if tied else dembedding,
        "encoder": {"bias": encoder.bias, "layers": encoder.layers, "norm": encoder_norm},
        "decoder": {"bias": decoder.bias, "layers": decoder.layers, "norm": decoder_norm},
    }
    return found if tied else {**found, "head": grads.head}


def shift_right(model: T5, labels: Array, /) -> Array:
    """What the decoder is given to foresee labels (..., Q): the start token, all but the last."""
    xp = array_namespace(labels)
    start = xp.full_like(labels[..., :1], model.config.start)
    shifted = xp.concat([start, labels[..., :-1]], axis=-1)
    return xp.where(shifted == IGNORED, model.config.padding, shifted)


def check_ks(model: T5, /) -> LayerKs:
    """The keys and units that the layers keep."""
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


PARTS = {"attention_k": ("encoder", "decoder", "cross"), "ffn_k": ("encoder", "decoder")}


def _of_part(name: str, k: Any, part: str) -> tuple[str, LayerK]:
    """What errors call the k of a part, and that: one for all parts, or each its own."""
    parts = PARTS[name]
    if not isinstance(k, Mapping) or not k.keys() & set(PARTS["attention_k"]):
        return name, k
    if unknown := k.keys() - set(parts):
        raise ValueError(
            f"{name} must have entries for {', '.join(parts)} only, got {min(map(str, unknown))!r}"
        )
    return f"{name}[{part!r}]", k.get(part)


def _encoder_blocks(
    model: T5, tokens: Array, mask: Array | None, workers: int | None
) -> list[Block]:
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
    workers: int | None,
) -> list[Block]:
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
    model: T5, part: str | None, mask: Array | None, workers: int | None, **options: Any
) -> Any:
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


def _units(model: T5, k: int | None, workers: int | None) -> Units:
    return Units(model.config.activation, k, model.ffn_select, workers)


def _head(model: T5) -> Array:
    return model.params.get("head", model.params["embedding"])
