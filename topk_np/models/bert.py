"""BERT-family encoders: hidden states, masked-LM logits, and the loss with its gradients.

Shapes: `...` batch axes, Q positions, D model width, H heads, F feed-forward width, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from topk_np import multihead_attention_bwd
from topk_np._namespace import Array, array_namespace, cast, compute_dtype
from topk_np.activations import ACTIVATIONS
from topk_np.layers import (
    embedding_bwd,
    embedding_fwd,
    layer_norm_bwd,
    layer_norm_fwd,
    linear,
    linear_bwd,
    linear_fwd,
    pool,
)
from topk_np.models.blocks import (
    BlockGrads,
    StackResiduals,
    Sublayer,
    stack,
    stack_bwd,
    stack_fwd,
    weight_grads,
)
from topk_np.models.model import Model, Params
from topk_np.models.per_layer import per_layer
from topk_np.models.sublayers import Heads, Units, attention_fwd, ffn_bwd, ffn_fwd
from topk_np.models.token_loss import TokenLossResiduals, token_loss_bwd, token_loss_fwd
from topk_np.models.tokens import check_mask, check_tokens

__all__ = ["BertConfig", "forward", "logits", "loss_bwd", "loss_fwd", "pooled"]


@dataclass(frozen=True)
class BertConfig:
    """What the weights do not say themselves.

    Attributes
    ----------
    heads : int
        Attention heads.
    norm_eps : float
        Added to the variance in layer norms.
    activation : {"gelu", "gelu_tanh", "relu", "silu"}
        Of the feed-forward layers and of the masked-LM head.
    """

    heads: int
    norm_eps: float
    activation: str


Bert: TypeAlias = Model[BertConfig]
"""
Its parameters: ``embedding`` with ``tokens`` (T, D), ``positions`` (most Q, D), ``types`` (., D)
and ``norm``; ``layers`` with ``attention``, ``attention_norm``, ``ffn`` and ``ffn_norm``; where the
checkpoint has them ``pooler``, and ``head`` with ``dense``, ``norm``, ``bias`` and, if it is not
tied to the embedding, ``weight``. Norms and dense layers have ``weight`` and ``bias``.
"""


@dataclass(frozen=True)
class PostNormBlock:
    """How a block computes: all but its weights and its inputs."""

    eps: float
    heads: Heads
    units: Units

    def fwd(
        self, x: Array, layer: Params, context: None = None, /, *, caches: tuple[()] = ()
    ) -> tuple[Array, dict[str, Sublayer]]:
        """The block's output (..., Q, D), and what `bwd` needs."""
        # 1 x = norm(x + attention(x))
        # 2 x = norm(x + ffn(x))
        residuals = {}
        out, part = attention_fwd(x, layer["attention"], self.heads)
        x, norm = _norm_fwd(x + out, layer["attention_norm"], self.eps)
        residuals["attention"] = Sublayer(norm, part)
        out, part = ffn_fwd(x, layer["ffn"], self.units)
        x, norm = _norm_fwd(x + out, layer["ffn_norm"], self.eps)
        residuals["ffn"] = Sublayer(norm, part)
        return x, residuals

    def bwd(self, residuals: dict[str, Sublayer], dx: Array, /) -> BlockGrads:
        """Gradients of `fwd`."""
        # 2
        norm, part = residuals["ffn"]
        dx, ffn_norm = _norm_bwd(norm, dx)
        dinner, ffn = ffn_bwd(part, dx)
        dx = dx + dinner
        # 1
        norm, part = residuals["attention"]
        dx, attention_norm = _norm_bwd(norm, dx)
        grads = multihead_attention_bwd(part, dx)
        layer = {
            "attention": weight_grads(grads),
            "attention_norm": attention_norm,
            "ffn": ffn,
            "ffn_norm": ffn_norm,
        }
        return BlockGrads(dx + grads.x, layer)


def forward(
    model: Bert,
    tokens: Array,
    /,
    *,
    mask: Array | None = None,
    types: Array | None = None,
    workers: int | None = None,
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
    workers : int, optional
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
    x, _ = _embed_fwd(model, tokens, types)
    return stack(blocks, x, model.params["layers"])


def logits(model: Bert, hidden: Array, /) -> Array:
    """Unnormalised log probabilities (..., Q, T) of the token at each position: masked-LM head."""
    h, _ = _transform_fwd(model, hidden)
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
    workers: int | None = None,
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
    x, embedded = _embed_fwd(model, tokens, types)
    x, stacked = stack_fwd(blocks, x, model.params["layers"], recompute=recompute)
    x, transformed = _transform_fwd(model, x)
    loss, head = token_loss_fwd(x, labels, *_head(model))
    return loss, LossResiduals(embedded, stacked, transformed, head, model.params)


def loss_bwd(residuals: LossResiduals, dout: float = 1.0, /) -> Params:
    """
    Gradients of `loss_fwd`, in the structure of the model's parameters.

    Parameters
    ----------
    residuals : LossResiduals
        From `loss_fwd`.
    dout : float, default 1.0
        Gradient with respect to the loss.

    Returns
    -------
    nested dict of arrays
        A pooler, which is no part of the loss, has gradient 0.
    """
    params = residuals.params
    # 4
    grads = token_loss_bwd(residuals.head, dout)
    # 3
    dx, head = _transform_bwd(residuals.transform, grads.hidden)
    # 2
    stacked = stack_bwd(residuals.stack, dx)
    # 1
    embedding = _embed_bwd(residuals.embedding, stacked.x, params["embedding"])
    head["bias"] = grads.bias
    if "weight" in params["head"]:
        head["weight"] = grads.head
    else:
        embedding["tokens"] = embedding["tokens"] + grads.head
    found = {"embedding": embedding, "layers": stacked.layers, "head": head}
    if "pooler" in params:
        xp = array_namespace(dx)
        found["pooler"] = {name: xp.zeros_like(array) for name, array in params["pooler"].items()}
    return {name: found[name] for name in params}


def check_ks(model: Bert, /) -> list[tuple[int | None, int | None]]:
    """The keys and the units that each layer keeps."""
    depth = len(model.params["layers"])
    ks = per_layer("attention_k", model.attention_k, depth)
    return list(zip(ks, per_layer("ffn_k", model.ffn_k, depth), strict=True))


def _blocks(
    model: Bert, tokens: Array, mask: Array | None, workers: int | None
) -> list[PostNormBlock]:
    config = model.config
    options: dict[str, Any] = {"workers": workers}
    if mask is not None:
        check_mask("mask", mask, tokens)
        options["mask"] = mask[..., None, None, None, :]  # of groups, their heads, and queries
    return [
        PostNormBlock(
            config.norm_eps,
            Heads(config.heads, config.heads, k, options),
            Units(config.activation, units, model.ffn_select, workers),
        )
        for k, units in check_ks(model)
    ]


class _Embedded(NamedTuple):
    tokens: Any
    types: Any
    norm: Any


def _embed_fwd(model: Bert, tokens: Array, types: Array | None) -> tuple[Array, _Embedded]:
    params = model.params["embedding"]
    check_tokens(params["tokens"], tokens)
    xp, length, most = array_namespace(tokens), tokens.shape[-1], params["positions"].shape[0]
    if length > most:
        raise ValueError(f"tokens must have at most {most} positions, got shape {tokens.shape}")
    types = xp.zeros_like(tokens) if types is None else types
    check_tokens(params["types"], types, name="types")
    # 1 x = norm(row of the token + row of the position + row of the type)
    x, token_rows = embedding_fwd(tokens, params["tokens"])
    type_row, type_rows = embedding_fwd(types, params["types"])
    x = x + params["positions"][:length, :] + type_row
    x, norm = _norm_fwd(x, params["norm"], model.config.norm_eps)
    return x, _Embedded(token_rows, type_rows, norm)


def _embed_bwd(residuals: _Embedded, dx: Array, params: Params) -> Params:
    # 1
    dx, norm = _norm_bwd(residuals.norm, dx)
    xp, table = array_namespace(dx), params["positions"]
    *lead, length, width = dx.shape
    rows = xp.sum(xp.reshape(dx, (math.prod(lead), length, width)), axis=0, dtype=dx.dtype)
    unused = xp.zeros_like(table[length:, :])
    return {
        "tokens": embedding_bwd(residuals.tokens, dx),
        "positions": xp.concat([rows, unused], axis=0),
        "types": embedding_bwd(residuals.types, dx),
        "norm": norm,
    }


class _Transformed(NamedTuple):
    dense: Any
    scores: Array
    weights: Array
    activation: str
    norm: Any


def _transform_fwd(model: Bert, hidden: Array) -> tuple[Array, _Transformed]:
    """What the masked-LM head does before the output layer."""
    if "head" not in model.params:
        raise ValueError("the model must have a masked-LM head for this; its checkpoint has none")
    head, activation = model.params["head"], model.config.activation
    # 1 scores = dense(hidden)
    # 2 weights = activation(scores)
    # 3 x = norm(weights)
    scores, dense = linear_fwd(hidden, head["dense"]["weight"], head["dense"]["bias"])
    xp = array_namespace(scores)
    raw = cast(xp, scores, compute_dtype(xp, scores))
    weights = ACTIVATIONS[activation].value(raw)
    x, norm = _norm_fwd(cast(xp, weights, scores.dtype), head["norm"], model.config.norm_eps)
    return x, _Transformed(dense, raw, weights, activation, norm)


def _transform_bwd(residuals: _Transformed, dx: Array) -> tuple[Array, Params]:
    # 3
    dweights, norm = _norm_bwd(residuals.norm, dx)
    # 2
    xp = array_namespace(dx)
    dweights = cast(xp, dweights, residuals.scores.dtype)
    dscores = ACTIVATIONS[residuals.activation].vjp(residuals.scores, residuals.weights, dweights)
    # 1
    grads = linear_bwd(residuals.dense, cast(xp, dscores, dx.dtype))
    return grads.x, {"dense": {"weight": grads.weight, "bias": grads.bias}, "norm": norm}


def _head(model: Bert) -> tuple[Array, Array]:
    head = model.params["head"]
    return head.get("weight", model.params["embedding"]["tokens"]), head["bias"]


def _norm_fwd(x: Array, params: Params, eps: float) -> tuple[Array, Any]:
    return layer_norm_fwd(x, params["weight"], params["bias"], eps=eps)


def _norm_bwd(residuals: Any, dx: Array) -> tuple[Array, Params]:
    grads = layer_norm_bwd(residuals, dx)
    return grads.x, {"weight": grads.weight, "bias": grads.bias}
