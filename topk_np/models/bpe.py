"""Byte-level BPE: text to token ids and back, from a vocabulary and its merges."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

CONTROL = 3  # GGUF's token type of markers such as <|endoftext|>


class ByteBPE:
    """
    A tokenizer in the manner of GPT-2, built on the package ``tokenizers``.

    Parameters
    ----------
    tokens : sequence of str
        The vocabulary in order of the ids, bytes written as GPT-2's printable characters.
    merges : sequence of (str, str)
        Pairs to merge, first rule first.
    kinds : sequence of int, optional
        GGUF token types. Tokens of type 3 are markers: matched whole, left out when decoding.
    split : {"default", "gpt-2", "smollm"}
        How text is cut before merging: GPT-2's rule, and for "smollm" every digit on its own.
    unknown : int, optional
        The id that stands for bytes the vocabulary lacks; by default such text is an error.
    first : int, optional
        The id of a token to put before every text.

    Raises
    ------
    ValueError
        If `split` is another rule, a merge names a token that the vocabulary lacks, or `unknown` or
        `first` is no id.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[tuple[str, str]],
        *,
        kinds: Sequence[int] | None = None,
        split: str = "default",
        unknown: int | None = None,
        first: int | None = None,
    ) -> None:
        import tokenizers
        from tokenizers import AddedToken, decoders, models, pre_tokenizers

        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rules = {
            "default": byte_level,
            "gpt-2": byte_level,
            "smollm": pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), byte_level]
            ),
        }
        if split not in rules:
            raise ValueError(f"split must be one of {', '.join(rules)}, got {split!r}")
        ids = {token: i for i, token in enumerate(tokens)}
        for left, right in merges:
            if not {left, right, left + right} <= ids.keys():
                raise ValueError(f"merge {left!r} + {right!r} is not among the tokens")
        for name, own in (("unknown", unknown), ("first", first)):
            if own is not None and not 0 <= own < len(tokens):
                raise ValueError(f"{name} must be the id of one of {len(tokens)} tokens, got {own}")
        unk_token = None if unknown is None else tokens[unknown]
        model = models.BPE(vocab=ids, merges=list(merges), unk_token=unk_token)
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = rules[split]
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [
                AddedToken(token, special=True, normalized=False)
                for token, kind in zip(tokens, kinds or (), strict=bool(kinds))
                if kind == CONTROL
            ]
        )
        self._tokenizer = tokenizer
        self._first = [] if first is None else [first]
        self._byte_of = _gpt2_alphabet()
        self._lossless = unknown is not None or ids.keys() >= self._byte_of.keys()
        self._markers = {i for i, kind in enumerate(kinds or ()) if kind == CONTROL}

    def encode(self, text: str) -> np.ndarray:
        """
        Token ids of `text`, int32 (Q,).

        Raises
        ------
        ValueError
            If the vocabulary lacks a byte of the text and has no token for unknown ones.
        """
        ids = np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        if not self._lossless and self._tokenizer.decode(ids.tolist(), False) != text:
            raise ValueError("text has bytes that the vocabulary lacks")
        return np.asarray([*self._first, *ids], np.int32) if self._first else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the token ids, markers left out."""
        return str(self._tokenizer.decode([int(i) for i in ids]))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """
        The text of `decode`, piece by piece as the ids come.

        A piece ends between characters: one whose bytes are in several tokens is whole.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            if piece := decoder.decode(self._bytes(int(i))):
                yield piece
        if piece := decoder.decode(b"", final=True):
            yield piece

    def _bytes(self, i: int) -> bytes:
        token = self._tokenizer.id_to_token(i)
        if token is None or i in self._markers:
            return b""
        if self._byte_of.keys() >= set(token):
            return bytes(self._byte_of[character] for character in token)
        return str(token).encode()


def _gpt2_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    own = {chr(byte): byte for byte in printable}
    return own | {chr(256 + i): byte for i, byte in enumerate(others)}
