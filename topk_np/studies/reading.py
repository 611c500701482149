"""Language models read: texts, pass keys hidden in them, and predictions layer by layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from topk_np._namespace import Array
from topk_np._process import UserError
from topk_np.diagnostics import kept_mass
from topk_np.models.llama import Llama, causal_attention, forward
from topk_np.models.model import LayerK, Model, check_ks
from topk_np.models.scoring import NextTokens, next_tokens
from topk_np.models.tokenizers import Tokenizer
from topk_np.studies.runner import Setting
from topk_np.tasks.reviews import movie_reviews

CHARACTERS = 8  # encoded at most for each token that is wanted
LEAST_TEXT = 16  # tokens besides the pass key and its question

Config = TypeVar("Config")
Watch = Callable[[Array, Array, Array], object]
"""Called in each layer, first layer first, with query, key and value, as `forward` says."""


def with_setting(model: Model[Config], setting: Setting, /) -> Model[Config]:
    """
    The model with the k of a setting; without any it is dense.

    A setting may have ``attention_k``, ``ffn_k``, ``ffn_select``, and ``dense_layers``: a list of
    layers that keep all keys.
    """
    k: LayerK = setting.get("attention_k")
    if "dense_layers" in setting:
        k = {**dict.fromkeys(setting["dense_layers"], None), "rest": setting["attention_k"]}
    return replace(
        model,
        attention_k=k,
        ffn_k=setting.get("ffn_k"),
        ffn_select=setting.get("ffn_select", "activation"),
    )


def documentation() -> str:
    """The documentation that comes with Python."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def reviews() -> str:
    """All movie reviews, one after the other."""
    return "\n\n".join(movie_reviews())


SOURCES = {"Python's documentation": documentation, "movie reviews": reviews}
"""The sources of texts by name."""


def sequences(tokenizer: Tokenizer, starts: Sequence[int], tokens: int, /) -> list[np.ndarray]:
    """
    Sequences of equal length, from each source in turn, at each start.

    Parameters
    ----------
    tokenizer : Tokenizer
        The tokenizer of the model.
    starts : sequence of int
        Tokens of a source before a sequence.
    tokens : int
        The length of each sequence.

    Raises
    ------
    UserError
        If a source is too short.
    MissingDataError
        If the reviews are not there.
    """
    wanted = max(starts) + tokens
    ids = []
    for name, source in SOURCES.items():
        ids.append(tokenizer.encode(source()[: CHARACTERS * wanted]))
        if len(ids[-1]) < wanted:
            raise UserError(
                f"{name} must have {wanted:,} tokens for this model, got {len(ids[-1]):,}"
            )
    return [own[start : start + tokens] for start in starts for own in ids]


def digest(arrays: Sequence[np.ndarray], /) -> str:
    """A short hash of tokens, which other tokens do not share."""
    content = b"".join(np.asarray(array, "<i4").tobytes() for array in arrays)
    return hashlib.sha256(content).hexdigest()[:16]


@dataclass(frozen=True)
class Prompt:
    """
    A text with a pass key hidden in it, and at its end a question about it and the answer.

    One pass over it measures the predictions of the text, and the answer to the question: the most
    probable token at each digit, given the right digits before it. These are all right if and only
    if greedy generation would write the key.
    """

    ids: np.ndarray
    """(Q,) token ids."""
    is_text: np.ndarray
    """(Q - 1,) bool: True for tokens, from the second on, that are the text's own."""
    digits: int
    """The number of tokens at the end that are the answer."""
    before: int
    """The number of tokens of the text before the key."""


def hide(tokenizer: Tokenizer, text: np.ndarray, key: str, /, *, depth: float = 0.5) -> Prompt:
    """
    Hide a pass key in a text of (Q,) tokens, cut at its end to keep the length.

    Parameters
    ----------
    tokenizer : Tokenizer
        The tokenizer of the model and the text.
    text : integer array (Q,)
        The text.
    key : str
        Digits.
    depth : float
        The part of the text before the key.

    Raises
    ------
    ValueError
        If there would be next to no text around it; the message says what the length must be.
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


def read(model: Llama, tokens: np.ndarray, watch: Watch, /) -> NextTokens:
    """Predict each of (Q,) tokens except the first, and call `watch` in each layer."""
    ks = iter([k for k, _ in check_ks(model)])

    def attention(query: Array, key: Array, value: Array, **hidden: Any) -> Array:
        watch(query, key, value)
        return causal_attention(query, key, value, k=next(ks), **hidden)

    hidden = forward(replace(model, attention_k=None), tokens, attention=attention)
    return next_tokens(model, hidden, tokens)


def mass_of_layer(query: Array, key: Array, ks: Sequence[int], /) -> np.ndarray:
    """(len(ks),): the share of dense causal softmax mass that each k keeps, mean of all rows."""
    mass = kept_mass(query, key, k=list(ks), is_causal=True)
    return np.asarray(np.mean(mass, axis=tuple(range(1, mass.ndim))))
