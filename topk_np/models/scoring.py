"""The loss of each token of a text, and the most probable token in its place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from topk_np import array_namespace
from topk_np._namespace import Array
from topk_np.layers import linear
from topk_np.models.model import Model, output_layer

CHUNK = 256  # positions at a time: never Q x T logits


class NextTokens(NamedTuple):
    """Predictions of tokens, compared with the tokens that came."""

    loss: Array
    """-log probability of the token that came."""
    best: Array
    """The most probable token."""


def next_tokens(model: Model[Any], hidden: Array, tokens: Array, /) -> NextTokens:
    """
    Loss and best guess for every token but the first, from the hidden states of all of them.

    Parameters
    ----------
    model : Llama
        The model.
    hidden : array (..., Q, D)
        From `forward`, or a slice of its positions.
    tokens : integer array (..., Q)
        The tokens at these positions.

    Returns
    -------
    NextTokens
        `loss` and `best`, each (..., Q - 1).

    Raises
    ------
    ValueError
        If there are fewer than two tokens.
    """
    if tokens.shape[-1] < 2:
        raise ValueError(f"tokens must have at least 2 positions, got shape {tokens.shape}")
    logits = partial(_logits, output_layer(model))
    return guesses(logits, hidden[..., :-1, :], tokens[..., 1:])


def guesses(logits: Callable[[Array], Array], hidden: Array, labels: Array, /) -> NextTokens:
    """
    Loss and best guess for each of some labels, a few positions at a time.

    Parameters
    ----------
    logits : callable
        From hidden states (..., n, D) to scores (..., n, T).
    hidden : array (..., Q, D)
        Hidden states.
    labels : integer array (..., Q)
        The token to predict from each of them.
    """
    xp = array_namespace(hidden, labels)
    losses, best = [], []
    for start in range(0, labels.shape[-1], CHUNK):
        stop = min(start + CHUNK, labels.shape[-1])
        scores = logits(hidden[..., start:stop, :])
        came = xp.astype(labels[..., start:stop, None], xp.int64)
        first = xp.argmax(scores, axis=-1, keepdims=True)
        best.append(first[..., 0])
        top = xp.take_along_axis(scores, first, axis=-1)
        norm = top + xp.log(xp.sum(xp.exp(scores - top), axis=-1, keepdims=True))
        losses.append((norm - xp.take_along_axis(scores, came, axis=-1))[..., 0])
    return NextTokens(xp.concat(losses, axis=-1), xp.concat(best, axis=-1))


def _logits(head: Array, hidden: Array) -> Array:
    return linear(hidden, head)
