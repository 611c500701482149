"""BERT-family encoders: hidden states, masked-LM logits, and the loss with its gradients.

Shapes: `...` batch axes, Q positions, D model width, H heads, F feed-forward width, T tokens.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Literal, NamedTuple

from topk_np._namespace import Array, array_namespace
from topk_np.layers import linear, pool
from topk_np.models.bert_ends import (
    Bert,
    BertConfig,
    embed_bwd,
    embed_fwd,
    transform_bwd,
    transform_fwd,
)
from topk_np.models.blocks import Block, StackResiduals, stack, stack_bwd, stack_fwd
from topk_np.models.keep import Keep, check_keep, kept_of
from topk_np.models.model import Params
from topk_np.models.per_layer import per_layer
from topk_np.models.sublayers import Heads, Units
from topk_np.models.token_loss import TokenLossResiduals, token_loss_bwd, token_loss_fwd
from topk_np.models.tokens import check_mask
from topk_np.training.trees import flatten

__all__ = ["BertConfig", "forward", "logits", "loss_bwd", "loss_fwd", "pooled"]


def forward(
    model: Bert,
    tokens: Array,
    /,
    *,
    mask: Array | None = None,
    types: Array | None = None,
    workers: int | Executor | None = None,
) -> Array:
    """
    Hidden states after the last block.

    Parameters
    ----------
    model : Bert
        The model.
    tokens : integer array (..., Q)
        Token ids.
    mask : bool array (..., Q), optional
        False at padding, which no position attends to; all are True by default.
    types : integer array (..., Q), optional
        Which of two texts each token belongs to, 0 by default.
    workers : int or concurrent.futures.Executor, optional
        Threads, passed on.

    Returns
    -------
    array (..., Q, D)
        Of the weights' dtype.

    Raises
    ------
    TypeError
        If tokens or types are not integers, or the mask is not boolean.
    ValueError
        If tokens or types are outside their tables, there are more tokens than positions, or a k
        does not fit the layers.

    Examples
    --------
    >>> from topk_np.models import bert, load_model
    >>> model = load_model("my-bert")  # doctest: +SKIP
    >>> hidden = bert.forward(model, model.tokenizer.encode("A sentence."))  # doctest: +SKIP
    """
    blocks = _blocks(model, tokens, mask, workers)
    x, _ = embed_fwd(model, tokens, types)
    return stack(blocks, x, model.params["layers"])


def logits(model: Bert, hidden: Array, /) -> Array:
    """Unnormalised log probabilities (..., Q, T) of the token at each position: masked-LM head."""
    h, _ = transform_fwd(model, hidden)
    return linear(h, *_head(model))


def pooled(
    model: Bert,
    hidden: Array,
    /,
    *,
    mask: Array | None = None,
    how: Literal["mean", "first", "pooler"] = "mean",
) -> Array:
    """
    One row (..., D) of hidden states (..., Q, D).

    Parameters
    ----------
    model : Bert
        The model.
    hidden : array (..., Q, D)
        From `forward`.
    mask : bool array (..., Q), optional
        False at padding.
    how : {"mean", "first", "pooler"}
        The mean over what is not padding, as sentence encoders have it; the first position; or
        that behind the layer that the model was trained with for it.

    Raises
    ------
    ValueError
        If the checkpoint has no pooler and that is asked for, or `how` is unknown.
    """
    if how != "pooler":
        return pool(hidden, mask=mask, how=how)
    if "pooler" not in model.params:
        raise ValueError("how must be 'mean' or 'first' for a model without a pooler, got 'pooler'")
    weights = model.params["pooler"]
    rows = linear(hidden[..., 0, :], weights["weight"], weights["bias"])
    return array_namespace(rows).tanh(rows)


class LossResiduals(NamedTuple):
    """What `loss_bwd` needs, step by step."""

    embedding: Any
    stack: StackResiduals
    transform: Any
    head: TokenLossResiduals
    params: Params


def loss_fwd(
    model: Bert,
    tokens: Array,
    labels: Array,
    /,
    *,
    mask: Array | None = None,
    types: Array | None = None,
    recompute: bool = False,
    workers: int | Executor | None = None,
) -> tuple[Array, LossResiduals]:
    """
    The masked-LM loss, and what `loss_bwd` needs.

    Parameters
    ----------
    model : Bert
        The model, which must have the masked-LM head.
    tokens, mask, types, workers
        As for `forward`.
    labels : integer array (..., Q)
        The token that should stand at each position; -100 does not count.
    recompute : bool, default False
        Keep the inputs of the blocks only, and compute each again in the backward pass.

    Returns
    -------
    loss : array ()
        The mean of -log probability over the labels that count.
    residuals : LossResiduals
        For `loss_bwd`.
    """
    # 1 x = norm(embeddings)
    # 2 x = blocks(x)
    # 3 x = norm(activation(dense(x)))
    # 4 loss of the label at each position
    blocks = _blocks(model, tokens, mask, workers)
    x, embedded = embed_fwd(model, tokens, types)
    x, stacked = stack_fwd(blocks, x, model.params["layers"], recompute=recompute)
    x, transformed = transform_fwd(model, x)
    loss, head = token_loss_fwd(x, labels, *_head(model))
    return loss, LossResiduals(embedded, stacked, transformed, head, model.params)


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
        Which weights have their gradients wanted, by their paths such as "layers.0.ffn.keys", and
        for each a function: what it makes of the gradient is kept, block by block. By default all,
        as they are.

    Returns
    -------
    nested dict of arrays
        A pooler, which is no part of the loss, has gradient 0.

    Raises
    ------
    ValueError
        If `keep` names what is no weight of the model.
    """
    params = residuals.params
    check_keep(keep, flatten(params))
    # 4
    grads = token_loss_bwd(residuals.head, dout)
    # 3
    dx, head = transform_bwd(residuals.transform, grads.hidden)
    # 2
    stacked = stack_bwd(residuals.stack, dx, keep)
    # 1
    embedding = embed_bwd(residuals.embedding, stacked.x, params["embedding"])
    head["bias"] = grads.bias
    if "weight" in params["head"]:
        head["weight"] = grads.head
    else:
        embedding["tokens"] = embedding["tokens"] + grads.head
    ends: Params = {"embedding": embedding, "head": head}
    if "pooler" in params:
        xp = array_namespace(dx)
        ends["pooler"] = {name: xp.zeros_like(array) for name, array in params["pooler"].items()}
    found = kept_of(ends, keep)
    if stacked.layers:
        found["layers"] = stacked.layers
    return {name: found[name] for name in params if name in found}


def check_ks(model: Bert, /) -> list[tuple[int | None, int | None]]:
    """The keys and the units that each layer keeps."""
    depth = len(model.params["layers"])
    ks = per_layer("attention_k", model.attention_k, depth)
    return list(zip(ks, per_layer("ffn_k", model.ffn_k, depth), strict=True))


def _blocks(
    model: Bert, tokens: Array, mask: Array | None, workers: int | Executor | None
) -> list[Block]:
    config = model.config
    options: dict[str, Any] = {"workers": workers}
    if mask is not None:
        check_mask("mask", mask, tokens)
        options["mask"] = mask[..., None, None, None, :]  # of groups, their heads, and queries
    return [
        Block(
            config.norm_eps,
            Heads(config.heads, config.heads, k, options),
            Units(config.activation, units, model.ffn_select, workers),
            norm="layer",
            norm_first=False,
        )
        for k, units in check_ks(model)
    ]


def _head(model: Bert) -> tuple[Array, Array]:
    head = model.params["head"]
    return head.get("weight", model.params["embedding"]["tokens"]), head["bias"]
