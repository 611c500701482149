"""What BERT does before its blocks, and after them where it guesses tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from topk_np._namespace import Array, array_namespace, cast, compute_dtype
from topk_np.activations import ACTIVATIONS
from topk_np.layers import embedding_bwd, embedding_fwd, linear_bwd, linear_fwd
from topk_np.layers.norms import norm_bwd, norm_fwd
from topk_np.models.model import Model, Params
from topk_np.models.tokens import check_tokens


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


class Embedded(NamedTuple):
    """What `embed_bwd` needs."""

    tokens: Any
    types: Any
    norm: Any


def embed_fwd(model: Bert, tokens: Array, types: Array | None) -> tuple[Array, Embedded]:
    """What goes into the first block, of checked tokens and types."""
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


def embed_bwd(residuals: Embedded, dx: Array, params: Params) -> Params:
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
    """What `transform_bwd` needs."""

    dense: Any
    scores: Array
    weights: Array
    activation: str
    norm: Any


def transform_fwd(model: Bert, hidden: Array) -> tuple[Array, Transformed]:
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
    h = cast(xp, weights, scores.dtype)
    x, norm = norm_fwd("layer", h, head["norm"], eps=model.config.norm_eps)
    return x, Transformed(dense, raw, weights, activation, norm)


def transform_bwd(residuals: Transformed, dx: Array) -> tuple[Array, Params]:
    """Gradients of `transform_fwd`: of the hidden states, and of the weights."""
    # 3
    dweights, norm = norm_bwd(residuals.norm, dx)
    # 2
    xp = array_namespace(dx)
    dweights = cast(xp, dweights, residuals.scores.dtype)
    dscores = ACTIVATIONS[residuals.activation].vjp(residuals.scores, residuals.weights, dweights)
    # 1
    grads = linear_bwd(residuals.dense, cast(xp, dscores, dx.dtype))
    return grads.x, {"dense": {"weight": grads.weight, "bias": grads.bias}, "norm": norm}
