"""Text to token ids and back, as models of all families have it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np


class Tokenizer(Protocol):
    """What a model needs of a tokenizer."""

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`, int32 (Q,), with the markers that the model wants around them."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the token ids, markers left out."""
        ...

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of `decode`, piece by piece as the ids come."""
        ...


_NONE = "the model has no tokenizer: its folder has neither tokenizer.json nor spiece.model"


class NoTokenizer:
    """What stands for the tokenizer of a checkpoint that has none: a `ValueError` when used."""

    def encode(self, text: str) -> np.ndarray:
        """Say that there is none."""
        raise ValueError(_NONE)

    def decode(self, ids: Iterable[int]) -> str:
        """Say that there is none."""
        raise ValueError(_NONE)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Say that there is none."""
        raise ValueError(_NONE)


class FileTokenizer:
    """
    The tokenizer of a ``tokenizer.json``, read by the package ``tokenizers``.

    Parameters
    ----------
    path : path
        The file.

    Raises
    ------
    ValueError
        If it is not such a file.
    """

    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{path} is not a readable tokenizer: {error}") from error
        # Whoever calls pads and cuts as the model wants it.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`, int32 (Q,), with the markers that the file puts around them."""
        return np.asarray(self._tokenizer.encode(text).ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the token ids, markers left out."""
        return str(self._tokenizer.decode([int(i) for i in ids]))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """
        The text of `decode`, piece by piece as the ids come.

        A piece ends between characters: one whose bytes are in several tokens is whole.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        for i in ids:
            if piece := stream.step(self._tokenizer, int(i)):
                yield piece


def pad(rows: Iterable[np.ndarray], /, *, token: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """
    Token ids of several texts as one array, and which of them are theirs.

    Parameters
    ----------
    rows : iterable of int array (Q,)
        From `Tokenizer.encode`; at least one.
    token : int, default 0
        What is put after the shorter ones.

    Returns
    -------
    tokens : int32 array (B, Q)
        As long as the longest.
    mask : bool array (B, Q)
        False where there is nothing but padding.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.models.tokenizer import pad
    >>> pad([np.array([5, 6]), np.array([7])])[0]
    array([[5, 6],
           [7, 0]], dtype=int32)
    """
    rows = [np.asarray(row) for row in rows]
    if not rows:
        raise ValueError("rows must have at least one row, got none")
    lengths = np.asarray([len(row) for row in rows])
    mask = np.arange(max(1, lengths.max())) < lengths[:, None]
    tokens = np.full(mask.shape, token, np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask
