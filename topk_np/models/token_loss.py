"""The cross-entropy of tokens from hidden states, without all Q x T logits at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from topk_np._namespace import Array, array_namespace
from topk_np.layers import cross_entropy_bwd, cross_entropy_fwd, linear, linear_bwd, linear_fwd
from topk_np.layers.linear import as_rows

IGNORED = -100  # a label that does not count
MOST_LOGITS = 2**24  # at a time


class TokenLossGrads(NamedTuple):
    """Gradients of the loss, each with the shape and dtype of its input, or None if not wanted."""

    hidden: Array
    head: Array | None
    bias: Array | None


@dataclass(frozen=True, eq=False)
class TokenLossResiduals:
    """The residuals of `token_loss_fwd`: its inputs, from which logits are computed again."""

    hidden: Array = field(repr=False)
    labels: Array = field(repr=False)
    head: Array = field(repr=False)
    bias: Array | None = field(repr=False)
    count: int
    """The number of labels that count."""


def token_loss_fwd(
    hidden: Array, labels: Array, head: Array, bias: Array | None = None, /
) -> tuple[Array, TokenLossResiduals]:
    """
    Mean of ``-log softmax(hidden headᵀ + bias)[label]`` over the labels that count.

    Parameters
    ----------
    hidden : array (..., Q, D)
        Hidden states.
    labels : integer array (..., Q)
        Tokens to predict; -100 does not count.
    head : array (T, D)
        The output layer.
    bias : array (T,), optional
        Its bias.
    """
    xp = array_namespace(hidden)
    if tuple(labels.shape) != tuple(hidden.shape[:-1]):
        raise ValueError(
            f"labels must have the shape of the tokens they are for, {tuple(hidden.shape[:-1])}, "
            f"got {tuple(labels.shape)}"
        )
    count = int(xp.sum(xp.astype(labels != IGNORED, xp.int64)))
    residuals = TokenLossResiduals(hidden, labels, head, bias, count)
    # 1 logits = hidden headᵀ + bias, of a chunk
    # 2 loss = mean of the chunks' losses, each with the number of its labels as weight
    losses = [xp.asarray(loss * share) for _, loss, _, share in _chunks(residuals)]
    return xp.sum(xp.stack(losses)), residuals


def token_loss_bwd(
    residuals: TokenLossResiduals, dout: float = 1.0, /, *, of_head: bool = True
) -> TokenLossGrads:
    """Gradients of `token_loss_fwd`, without those of head and bias if `of_head` is False."""
    xp = array_namespace(residuals.hidden)
    rows: list[Array] = []
    head, bias = None, None
    for residuals_of, _, entropy, share in _chunks(residuals):
        # 2
        dlogits = cross_entropy_bwd(entropy, dout * share)
        # 1
        if of_head:
            grads = linear_bwd(residuals_of, dlogits)
            rows.append(grads.x)
            head, bias = add(head, grads.weight), add(bias, grads.bias)
        else:
            rows.append(linear(dlogits, xp.matrix_transpose(residuals.head)))
    hidden = xp.reshape(xp.concat(rows, axis=0), residuals.hidden.shape)
    return TokenLossGrads(hidden, head, bias)


def _chunks(residuals: TokenLossResiduals) -> Iterator[tuple[Any, Array, Any, float]]:
    """Yield for each chunk residuals of its logits, loss, residuals of that, share of labels."""
    xp = array_namespace(residuals.hidden)
    rows = as_rows(residuals.hidden)
    labels = xp.reshape(residuals.labels, (math.prod(residuals.labels.shape),))
    size = max(1, MOST_LOGITS // residuals.head.shape[0])
    for start in range(0, max(1, rows.shape[0]), size):
        stop = min(start + size, rows.shape[0])
        own = labels[start:stop]
        logits, kept = linear_fwd(rows[start:stop, :], residuals.head, residuals.bias)
        loss, entropy = cross_entropy_fwd(logits, own, ignore_index=IGNORED)
        count = int(xp.sum(xp.astype(own != IGNORED, xp.int64)))
        yield kept, loss, entropy, count / max(1, residuals.count)


def add(total: Array | None, more: Array | None) -> Array | None:
    """The sum of two gradients, of which None is a missing one."""
    return more if total is None or more is None else total + more
