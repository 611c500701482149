"""A pass key hidden in a text, and asked for at its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from topk_np.models.tokenizer import Tokenizer

LEAST_TEXT = 16  # tokens beside the pass key and its question


@dataclass(frozen=True)
class Prompt:
    """
    A text with a pass key hidden in it, and at its end a question about it and the answer.

    One pass over it measures both how well the text is foreseen and what the question is answered
    with: the most probable token at each digit of the answer, given the right digits before it.
    They are all right if and only if greedy generation would write the key.
    """

    ids: np.ndarray
    """(Q,) token ids."""
    is_text: np.ndarray
    """(Q - 1,) bool: which tokens, from the second on, are the text's own."""
    digits: int
    """How many tokens at the end are the answer."""
    before: int
    """How many tokens of the text come before the key."""


def hide(tokenizer: Tokenizer, text: np.ndarray, key: str, /, *, depth: float = 0.5) -> Prompt:
    """
    Hide a pass key in a text of (Q,) tokens, cut at its end to keep the length.

    Parameters
    ----------
    tokenizer : Tokenizer
        Of the model and the text.
    text : integer array (Q,)
        The text.
    key : str
        Digits.
    depth : float
        The part of the text before the key.

    Raises
    ------
    ValueError
        If there would be next to no text around it; the message is what a length must be.
    """
    note = tokenizer.encode(f"\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n")
    question = tokenizer.encode(f"\n\nWhat is the pass key? The pass key is {key}")
    added = len(note) + len(question)
    room = len(text) - added
    if room < LEAST_TEXT:
        raise ValueError(
            f"must be at least {added + LEAST_TEXT}, to hide a pass key, got {len(text)}"
        )
    before = int(room * depth)
    pieces = [text[:before], note, text[before:room], question]
    is_text = np.repeat([True, False, True, False], [len(piece) for piece in pieces])
    digits = len(tokenizer.encode(key))
    return Prompt(np.concatenate(pieces), is_text[1:], digits, before)
