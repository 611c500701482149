"""T5-family encoder-decoder models, v1.0 and v1.1: forward, and the loss with its gradients.

Shapes: `...` batch axes, Q positions of the decoder, N of the encoder, D model width, H heads,
W head width, B buckets of distances, F feed-forward width, T tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

from topk_np import KVCache
from topk_np._namespace import Array, array_namespace
from topk_np.layers import embedding_bwd, embedding_fwd, linear, rms_norm_bwd, rms_norm_fwd
from topk_np.models.blocks import StackResiduals, stack, stack_bwd, stack_fwd
from topk_np.models.keep import Keep, check_keep, kept_of
from topk_np.models.model import Params
from topk_np.models.t5_blocks import T5, T5Config, decoder_blocks, encoder_blocks
from topk_np.models.token_loss import (
    IGNORED,
    TokenLossResiduals,
    token_loss_bwd,
    token_loss_fwd,
)
from topk_np.training.trees import flatten

__all__ = ["T5Config", "decode", "encode", "logits", "loss_bwd", "loss_fwd", "shift_right"]

Caches = Sequence[tuple[KVCache, KVCache]]
"""For each layer of the decoder one of its own positions, and one of the encoder's."""


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
    blocks = encoder_blocks(model, tokens, mask, workers)
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
    blocks = decoder_blocks(model, tokens, encoded, mask, first, workers)
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
    workers: int | Executor | None = None,
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
    blocks = encoder_blocks(model, tokens, mask, workers)
    x, embedded = embedding_fwd(tokens, params["embedding"])
    x, stacked = stack_fwd(blocks, x, params["encoder"]["layers"], recompute=recompute)
    encoded, normed = rms_norm_fwd(x, params["encoder"]["norm"], eps=eps)
    encoder = embedded, stacked, normed
    blocks = decoder_blocks(model, outputs, encoded, mask, 0, workers)
    y, embedded = embedding_fwd(outputs, params["embedding"])
    layers = params["decoder"]["layers"]
    y, stacked = stack_fwd(blocks, y, layers, encoded, recompute=recompute)
    y, normed = rms_norm_fwd(y, params["decoder"]["norm"], eps=eps)
    loss, head = token_loss_fwd(y * model.config.output_scale, labels, _head(model))
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
        Which weights have their gradients wanted, by their paths such as "encoder.bias", and
        for each a function: what it makes of the gradient is kept, block by block. By default all,
        as they are.

    Raises
    ------
    ValueError
        If `keep` names what is no weight of the model.
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
    """What the decoder is given to foresee labels (..., Q): the start token, all but the last."""
    xp = array_namespace(labels)
    start = xp.full_like(labels[..., :1], model.config.start)
    shifted = xp.concat([start, labels[..., :-1]], axis=-1)
    return xp.where(shifted == IGNORED, model.config.padding, shifted)


def _head(model: T5) -> Array:
    return model.params.get("head", model.params["embedding"])
