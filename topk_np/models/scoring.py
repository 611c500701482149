"""How well a Llama model foresees the tokens of a text."""

from __future__ import annotations

from typing import NamedTuple

from topk_np import array_namespace
from topk_np._namespace import Array
from topk_np.models.llama import logits
from topk_np.models.llama_blocks import Llama

CHUNK = 256  # positions at a time: never Q x T logits


class NextTokens(NamedTuple):
    """How well each token was foreseen from those before it; both fields are (..., Q - 1)."""

    loss: Array  # -log probability of the token that came
    best: Array  # the most probable token


def next_tokens(model: Llama, hidden: Array, tokens: Array, /) -> NextTokens:
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
    """
    xp = array_namespace(hidden, tokens)
    losses, best = [], []
    for start in range(0, tokens.shape[-1] - 1, CHUNK):
        stop = min(start + CHUNK, tokens.shape[-1] - 1)
        scores = logits(model, hidden[..., start:stop, :])
        came = xp.astype(tokens[..., start + 1 : stop + 1, None], xp.int64)
        first = xp.argmax(scores, axis=-1, keepdims=True)
        best.append(first[..., 0])
        top = xp.take_along_axis(scores, first, axis=-1)
        norm = top + xp.log(xp.sum(xp.exp(scores - top), axis=-1, keepdims=True))
        losses.append((norm - xp.take_along_axis(scores, came, axis=-1))[..., 0])
    if not losses:
        raise ValueError(f"tokens must have at least 2 positions, got shape {tokens.shape}")
    return NextTokens(xp.concat(losses, axis=-1), xp.concat(best, axis=-1))
