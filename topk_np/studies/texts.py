"""What language models read here: Python's own documentation, and movie reviews."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from topk_np._process import UserError
from topk_np.models.tokenizer import Tokenizer
from topk_np.tasks.reviews import movie_reviews

CHARACTERS = 8  # encoded at most for each token that is wanted


def documentation() -> str:
    """Python's documentation of its language, which comes with it."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def reviews() -> str:
    """All movie reviews, one after the other."""
    return "\n\n".join(movie_reviews())


SOURCES = {"Python's documentation": documentation, "movie reviews": reviews}
"""Where texts are from, and how they come."""


def sequences(tokenizer: Tokenizer, starts: Sequence[int], tokens: int, /) -> list[np.ndarray]:
    """
    Sequences of as many tokens, from each source in turn, at each start of theirs.

    Parameters
    ----------
    tokenizer : Tokenizer
        The model's.
    starts : sequence of int
        Tokens of a source before a sequence.
    tokens : int
        Of each sequence.

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
    """A short name that other tokens do not have."""
    content = b"".join(np.asarray(array, "<i4").tobytes() for array in arrays)
    return hashlib.sha256(content).hexdigest()[:16]
