"""Llama-family language models: forward, and the loss with its gradients, on any array library.

Shapes: `...` batch axes, Q positions, D model width, H heads, G groups of heads that share a key
and value, W head width, F feed-forward width, T tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from topk_np import KVCache, array_namespace
from topk_np._namespace import Array
from topk_np.layers import embedding_bwd, embedding_fwd, linear, rms_norm_bwd, rms_norm_fwd
from topk_np.models.blocks import StackResiduals, stack, stack_bwd, stack_fwd
from topk_np.models.keep import Keep, check_keep, kept_of, wants
from topk_np.models.llama_blocks import Llama, LlamaConfig, causal_attention, llama_blocks
from topk_np.models.model import Params
from topk_np.models.sublayers import Attention
from topk_np.models.token_loss import TokenLossResiduals, token_loss_bwd, token_loss_fwd
from topk_np.models.tokens import check_tokens
from topk_np.training.trees import flatten

__all__ = ["LlamaConfig", "causal_attention", "forward", "logits", "loss_bwd", "loss_fwd"]


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
    blocks = llama_blocks(model, tokens, first, attention, False, workers)
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
    blocks = llama_blocks(model, tokens, 0, None, True, workers)
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


def output_layer(model: Llama, /) -> Array:
    """(T, D), the embedding where it is tied to that."""
    return model.params.get("head", model.params["embedding"])


def _cached_length(caches: Sequence[KVCache], layers: int) -> int:
    """How many positions every one of the caches holds."""
    lengths = sorted({len(cache) for cache in caches})
    if len(caches) != layers:
        raise ValueError(f"caches must be one for each of {layers} layers, got {len(caches)}")
    if len(lengths) > 1:
        raise ValueError(f"caches must all have the same length, got {lengths}")
    return lengths[0]
