"""The tokenizer of T5: SentencePiece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np


class PieceTokenizer:
    """
    The tokenizer of a ``spiece.model``, read by the package ``sentencepiece`` when first used.

    Parameters
    ----------
    path : path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _pieces(self) -> Any:
        import sentencepiece

        pieces = sentencepiece.SentencePieceProcessor()
        try:
            pieces.LoadFromSerializedProto(self._path.read_bytes())
        except RuntimeError as error:
            raise ValueError(f"{self._path} is not a SentencePiece model: {error}") from error
        return pieces

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`, int32 (Q,), the last of which ends it, as T5 has it."""
        return np.asarray([*self._pieces.EncodeAsIds(text), self._pieces.eos_id()], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the token ids, markers left out."""
        return str(self._pieces.DecodeIds(self._texts(ids)))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """
        The text of `decode`, piece by piece as the ids come.

        A piece ends between characters: one whose bytes are in several tokens is whole.
        """
        known, told = [], ""
        for i in ids:
            known.append(i)
            text = self.decode(known)
            # The sign for what is no character yet: more bytes of it may come.
            if len(text) > len(told) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(told) :]
                told = text
        if rest := self.decode(known)[len(told) :]:
            yield rest

    def _texts(self, ids: Iterable[int]) -> list[int]:
        """The ids of text: neither markers, nor those that a model has beyond the file's."""
        pieces = self._pieces
        size = pieces.GetPieceSize()
        return [int(i) for i in ids if int(i) < size and not pieces.IsControl(int(i))]
