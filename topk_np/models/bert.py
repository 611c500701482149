"""BERT-family encoders: hidden states, masked-LM logits, and the loss with its gradients.

Shapes: `...` batch axes, Q positions, D model width, H heads, F feed-forward width, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from topk_np._namespace import Array, array_namespace, cast, compute_dtype
from topk_np.activations import ACTIVATIONS
from topk_np.layers import (
    embedding_bwd,
    embedding_fwd,
    linear,
    linear_bwd,
    linear_fwd,
    pool,
)
from topk_np.layers.norms import norm_bwd, norm_fwd
from topk_np.models.blocks import Block, StackResiduals, stack, stack_bwd, stack_fwd
from topk_np.models.family import ACTIVATION_NAMES, Examples, Family, Fields, Layout, Name, check
from topk_np.models.model import (
    Keep,
    Model,
    Params,
    check_keep,
    check_ks,
    check_mask,
    check_tokens,
    kept_of,
)
from topk_np.models.names import BERT
from topk_np.models.scoring import NextTokens, guesses
from topk_np.models.sublayers import Heads, Units
from topk_np.models.token_loss import (
    IGNORED,
    TokenLossResiduals,
    token_loss_bwd,
    token_loss_fwd,
)
from topk_np.training.trees import flatten

__all__ = ["BertConfig", "forward", "logits", "loss_bwd", "loss_fwd", "pooled"]

NO_HEAD = "the model must have a masked-LM head for this; its checkpoint has none"
MASKED = 0.15  # of the tokens of a plain text, to be predicted


@dataclass(frozen=True)
class BertConfig:
    """Numbers and rules of a BERT model that cannot be read off its weights.

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


DROPOUT = "there is no dropout in inference, nor in training here"
UNUSED = "belongs to parts that checkpoints of Google's first release had"
HARMLESS = {
    "attention_probs_dropout_prob": DROPOUT,
    "hidden_dropout_prob": DROPOUT,
    **dict.fromkeys(
        (
            "directionality",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
        ),
        UNUSED,
    ),
}


def layout(fields: Fields, tensors: Collection[str], /) -> Layout:
    """
    Read the config of a checkpoint; pooler and masked-LM head are optional.

    Raises
    ------
    ValueError
        If a field is missing, or the model has a part that is not computed here.
    """
    check("position_embedding_type", fields.get("position_embedding_type", "absolute"), "absolute")
    for name in ("is_decoder", "add_cross_attention"):
        check(name, fields.get(name, False), None, False)
    activation = fields.get("hidden_act", "gelu")
    check("hidden_act", activation, *ACTIVATION_NAMES)
    return Layout(
        BertConfig(
            heads=fields.number("num_attention_heads"),
            norm_eps=fields.positive("layer_norm_eps"),
            activation=ACTIVATION_NAMES[activation],
        ),
        _names(fields, tensors, tied=fields.flag("tie_word_embeddings", True)),
        sizes={
            "T": fields.number("vocab_size"),
            "D": fields.number("hidden_size"),
            "F": fields.number("intermediate_size"),
            "P": fields.number("max_position_embeddings"),
            "S": fields.number("type_vocab_size"),
        },
        # other heads, and copies of the head's weights
        ignored=(
            r"cls\.seq_relationship\..*",
            r"classifier\..*",
            r"cls\.predictions\.decoder\..*",
        ),
    )


def _names(fields: Fields, tensors: Collection[str], *, tied: bool) -> list[Name]:
    """The tensor of each parameter."""
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    names = [
        Name("embedding.tokens", f"{prefix}embeddings.word_embeddings.weight", "T D"),
        Name("embedding.positions", f"{prefix}embeddings.position_embeddings.weight", "P D"),
        Name("embedding.types", f"{prefix}embeddings.token_type_embeddings.weight", "S D"),
        *_pair("embedding.norm", f"{prefix}embeddings.LayerNorm", "D"),
    ]
    for i in range(fields.depth("num_hidden_layers", tensors)):
        for path, (tensor, shape) in BERT.items():
            full = f"{prefix}encoder.layer.{i}.{tensor}"
            names.append(Name(f"layers.{i}.{path}", full, shape, path == "ffn.values"))
    if any(name.startswith(f"{prefix}pooler.") for name in tensors):
        names += _pair("pooler", f"{prefix}pooler.dense", "D D")
    if any(name.startswith("cls.predictions.") for name in tensors):
        names += _pair("head.dense", "cls.predictions.transform.dense", "D D")
        names += _pair("head.norm", "cls.predictions.transform.LayerNorm", "D")
        names.append(Name("head.bias", "cls.predictions.bias", "T"))
        if not tied:
            names.append(Name("head.weight", "cls.predictions.decoder.weight", "T D"))
    return [name._replace(tensor=_as_stored(name.tensor, tensors)) for name in names]


def _as_stored(tensor: str, tensors: Collection[str]) -> str:
    """The name of a tensor in a checkpoint: the oldest call the weights of norms gamma and beta."""
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        former = tensor.replace(new, old)
        if tensor not in tensors and former in tensors:
            return former
    return tensor


def _pair(path: str, tensor: str, shape: str) -> list[Name]:
    """A weight and its bias."""
    first = shape.split()[0]
    return [
        Name(f"{path}.weight", f"{tensor}.weight", shape),
        Name(f"{path}.bias", f"{tensor}.bias", first),
    ]


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
        The number of the text that each token belongs to, 0 or 1; 0 by default.
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
    x, _ = _embed_fwd(model, tokens, types)
    return stack(blocks, x, model.params["layers"])


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


class Embedded(NamedTuple):
    """The residuals of `_embed_fwd`."""

    tokens: Any
    types: Any
    norm: Any


def _embed_fwd(model: Bert, tokens: Array, types: Array | None) -> tuple[Array, Embedded]:
    """The input of the first block, for checked tokens and types."""
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
    x, norm = norm_fwd("layer", x, params["norm"], eps=model.config.norm_eps)
    return x, Embedded(token_rows, type_rows, norm)


def _embed_bwd(residuals: Embedded, dx: Array, params: Params) -> Params:
    """Gradients of the embedding's weights."""
    # 1
    dx, norm = norm_bwd(residuals.norm, dx)
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


class Transformed(NamedTuple):
    """The residuals of `_transform_fwd`."""

    dense: Any
    scores: Array
    weights: Array
    activation: str
    norm: Any


def _transform_fwd(model: Bert, hidden: Array) -> tuple[Array, Transformed]:
    """The input of the output layer of the masked-LM head."""
    if "head" not in model.params:
        raise ValueError(NO_HEAD)
    head, activation = model.params["head"], model.config.activation
    # 1 scores = dense(hidden)
    # 2 weights = activation(scores)
    # 3 x = norm(weights)
    scores, dense = linear_fwd(hidden, head["dense"]["weight"], head["dense"]["bias"])
    xp = array_namespace(scores)
    raw = cast(xp, scores, compute_dtype(xp, scores))
    weights = ACTIVATIONS[activation].value(raw)
    h = cast(xp, weights, scores.dtype)
    x, norm = norm_fwd("layer", h, head["norm"], eps=model.config.norm_eps)
    return x, Transformed(dense, raw, weights, activation, norm)


def _transform_bwd(residuals: Transformed, dx: Array) -> tuple[Array, Params]:
    """Gradients of `_transform_fwd`: of the hidden states, and of the weights."""
    # 3
    dweights, norm = norm_bwd(residuals.norm, dx)
    # 2
    xp = array_namespace(dx)
    dweights = cast(xp, dweights, residuals.scores.dtype)
    dscores = ACTIVATIONS[residuals.activation].vjp(residuals.scores, residuals.weights, dweights)
    # 1
    grads = linear_bwd(residuals.dense, cast(xp, dscores, dx.dtype))
    return grads.x, {"dense": {"weight": grads.weight, "bias": grads.bias}, "norm": norm}


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
    Reduce hidden states (..., Q, D) to one row (..., D).

    Parameters
    ----------
    model : Bert
        The model.
    hidden : array (..., Q, D)
        From `forward`.
    mask : bool array (..., Q), optional
        False at padding.
    how : {"mean", "first", "pooler"}
        The mean over all positions but padding, as sentence encoders have it; the first position;
        or the first position after the layer that the model was trained with for it.

    Raises
    ------
    ValueError
        If `how` is "pooler" and the checkpoint has none, or `how` is unknown.
    """
    if how != "pooler":
        return pool(hidden, mask=mask, how=how)
    if "pooler" not in model.params:
        raise ValueError("how must be 'mean' or 'first' for a model without a pooler, got 'pooler'")
    weights = model.params["pooler"]
    rows = linear(hidden[..., 0, :], weights["weight"], weights["bias"])
    return array_namespace(rows).tanh(rows)


class LossResiduals(NamedTuple):
    """The residuals of `loss_fwd`, step by step."""

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
    The masked-LM loss, and the residuals that `loss_bwd` needs.

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
        The weights whose gradients are wanted, by their paths such as "layers.0.ffn.keys", each
        with a function: its result is kept in place of the gradient, block by block. By default
        all gradients, as they are.

    Returns
    -------
    nested dict of arrays
        A pooler, which is no part of the loss, has gradient 0.

    Raises
    ------
    ValueError
        If `keep` has a path that is not that of a weight of the model.
    """
    params = residuals.params
    check_keep(keep, flatten(params))
    # 4
    grads = token_loss_bwd(residuals.head, dout)
    # 3
    dx, head = _transform_bwd(residuals.transform, grads.hidden)
    # 2
    stacked = stack_bwd(residuals.stack, dx, keep)
    # 1
    embedding = _embed_bwd(residuals.embedding, stacked.x, params["embedding"])
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


def _head(model: Bert) -> tuple[Array, Array]:
    head = model.params["head"]
    return head.get("weight", model.params["embedding"]["tokens"]), head["bias"]


def _examples(model: Bert, tokens: np.ndarray, rng: np.random.Generator, /) -> Examples:
    """
    Plain text with some of its tokens masked, and these tokens as labels.

    Devlin et al. 2018, section 3.1, arXiv:1810.04805; all chosen tokens are masked here.
    """
    if "head" not in model.params:
        raise ValueError(NO_HEAD)
    mask_token = model.tokenizer.encode("[MASK]")
    if len(mask_token) != 3:  # itself, and a marker on each side
        raise ValueError("the model must have a tokenizer with a token [MASK] to learn from text")
    count = max(1, round(MASKED * tokens.shape[-1]))
    order = np.argsort(rng.random(tokens.shape), axis=-1)
    masked = order < count
    labels = np.where(masked, tokens, IGNORED)
    return Examples((np.where(masked, mask_token[1], tokens), labels), int(np.sum(masked)))


def _guess(model: Bert, tokens: np.ndarray, labels: np.ndarray, /) -> tuple[NextTokens, Array]:
    masked = labels != IGNORED
    hidden = forward(model, tokens)[masked]
    return guesses(partial(logits, model), hidden, labels[masked]), labels[masked]


FAMILY = Family(
    kind=BertConfig,
    types=("bert",),
    layout=layout,
    harmless=HARMLESS,
    check_ks=check_ks,
    loss_fwd=loss_fwd,
    loss_bwd=loss_bwd,
    examples=_examples,
    guess=_guess,
    context=lambda model: int(model.params["embedding"]["positions"].shape[0]),
)
