"""Text to token ids and back: tokenizers of files, byte-level BPE of GGUF, and SentencePiece."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from topk_np._namespace import check_choice

CONTROL, USER_DEFINED = 3, 4  # GGUF's token types of <|endoftext|> and of <think>, say
START, END = "<|im_start|>", "<|im_end|>"  # of a turn, in ChatML
# The rules by which text is cut before merging, as lists of patterns that each cut the pieces of
# those before, by the names that GGUF files have for them.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CASELESS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_BPE = ("llama-bpe", "llama3", "llama-v3")
"""Names of the rule of Llama 3, under which a piece that is a token is taken as it is."""
SPLITS = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_WORDS,),
    **dict.fromkeys(LLAMA_BPE, (_CASELESS.replace("DIGITS", "1,3"),)),
    "qwen2": (_CASELESS.replace("{DIGITS}", ""),),
    "smollm": (r"\p{N}", _WORDS),
}

_NONE = "the model has no tokenizer: its folder has neither tokenizer.json nor spiece.model"


class Tokenizer(Protocol):
    """The methods that a model needs of a tokenizer."""

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`, int32 (Q,), with the markers that the model wants around them."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the token ids, without markers."""
        ...

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of `decode` in pieces, as the ids come."""
        ...


class NoTokenizer:
    """The tokenizer of a checkpoint that has none: every method is a `ValueError`."""

    def encode(self, text: str) -> np.ndarray:
        """Raise a `ValueError`."""
        raise ValueError(_NONE)

    def decode(self, ids: Iterable[int]) -> str:
        """Raise a `ValueError`."""
        raise ValueError(_NONE)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Raise a `ValueError`."""
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
        # The caller pads and cuts as the model wants it.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`, int32 (Q,), with the markers that the file puts around them."""
        return np.asarray(self._tokenizer.encode(text).ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the token ids, without markers."""
        return str(self._tokenizer.decode([int(i) for i in ids]))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """
        Yield the text of `decode` in pieces, as the ids come.

        A piece ends between characters: one whose bytes are in several tokens is whole.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        for i in ids:
            if piece := stream.step(self._tokenizer, int(i)):
                yield piece


class ByteBPE:
    """
    A byte-level BPE tokenizer like that of GPT-2, built on the package ``tokenizers``.

    Parameters
    ----------
    tokens : sequence of str
        The vocabulary in order of the ids, bytes written as GPT-2's printable characters.
    merges : sequence of (str, str)
        Pairs to merge, first rule first.
    kinds : sequence of int, optional
        GGUF token types. Tokens of types 3 and 4 are matched whole; those of type 3 are markers,
        left out when decoding.
    split : {"default", "gpt-2", "llama-bpe", "llama3", "llama-v3", "qwen2", "smollm"}
        The name of the rule by which text is cut before merging, as in GGUF files.
    unknown : int, optional
        The id that stands for bytes the vocabulary lacks; by default such text is an error.
    first : int, optional
        The id of a token to put before every text.

    Raises
    ------
    ValueError
        If `split` is another rule, a merge names a token that the vocabulary lacks, or `unknown` or
        `first` is not an id.
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
        from tokenizers.pre_tokenizers import Split

        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        ids = {token: i for i, token in enumerate(tokens)}
        for left, right in merges:
            if not {left, right, left + right} <= ids.keys():
                raise ValueError(f"merge {left!r} + {right!r} is not among the tokens")
        for name, own in (("unknown", unknown), ("first", first)):
            if own is not None and not 0 <= own < len(tokens):
                raise ValueError(f"{name} must be the id of one of {len(tokens)} tokens, got {own}")
        unk_token = None if unknown is None else tokens[unknown]
        model = models.BPE(
            vocab=ids, merges=list(merges), unk_token=unk_token, ignore_merges=split in LLAMA_BPE
        )
        tokenizer = tokenizers.Tokenizer(model)
        patterns = [Split(tokenizers.Regex(text), "isolated") for text in SPLITS[split]]
        bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*patterns, bytewise])
        tokenizer.decoder = decoders.ByteLevel()
        typed = list(zip(tokens, kinds or (), strict=bool(kinds)))
        tokenizer.add_special_tokens(
            [AddedToken(t, special=True, normalized=False) for t, kind in typed if kind == CONTROL]
        )
        tokenizer.add_tokens(
            [AddedToken(t, normalized=False) for t, kind in typed if kind == USER_DEFINED]
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
        """Text of the token ids, without markers."""
        return str(self._tokenizer.decode([int(i) for i in ids]))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """
        Yield the text of `decode` in pieces, as the ids come.

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
        """Token ids of `text`, int32 (Q,), followed by the token that ends it, as in T5."""
        return np.asarray([*self._pieces.EncodeAsIds(text), self._pieces.eos_id()], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the token ids, without markers."""
        return str(self._pieces.DecodeIds(self._texts(ids)))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """
        Yield the text of `decode` in pieces, as the ids come.

        A piece ends between characters: one whose bytes are in several tokens is whole.
        """
        known, told = [], ""
        for i in ids:
            known.append(i)
            text = self.decode(known)
            # The sign for an incomplete character: more bytes of it may come.
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


def pad(
    rows: Iterable[np.ndarray], /, *, token: int = 0, side: str = "right"
) -> tuple[np.ndarray, np.ndarray]:
    """
    Token ids of several texts as one array, and a mask of the places that hold them.

    Parameters
    ----------
    rows : iterable of int array (Q,)
        From `Tokenizer.encode`; at least one.
    token : int, default 0
        The id to fill the shorter ones up with.
    side : {"right", "left"}
        Fill them up at the end, or at the beginning as prompts for generation want it.

    Returns
    -------
    tokens : int32 array (B, Q)
        As long as the longest.
    mask : bool array (B, Q)
        False at padding.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.models.tokenizers import pad
    >>> pad([np.array([5, 6]), np.array([7])])[0]
    array([[5, 6],
           [7, 0]], dtype=int32)
    """
    check_choice("side", side, ("left", "right"))
    rows = [np.asarray(row) for row in rows]
    if not rows:
        raise ValueError("rows must have at least one row, got none")
    lengths = np.asarray([len(row) for row in rows])
    mask = np.arange(max(1, lengths.max())) < lengths[:, None]
    mask = mask[:, ::-1] if side == "left" else mask
    tokens = np.full(mask.shape, token, np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask


def chat_prompt(message: str, template: str, /) -> str:
    r"""
    Write a message as a turn of a conversation in the format ChatML.

    Parameters
    ----------
    message : str
        The message of the user.
    template : str
        The model's chat template, from which the system's message is taken, if it has one.

    Raises
    ------
    ValueError
        If the template is not one of ChatML.

    Examples
    --------
    >>> from topk_np.models.tokenizers import chat_prompt
    >>> chat_prompt("Hello", "{{ '<|im_start|>' + message['role'] + ... }}")
    '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n'
    """
    if START not in template:
        raise ValueError(
            f"the model's chat template must be one with {START}, got {template!r:.60}"
        )
    system = re.search(f"{re.escape(START)}system\n(.*?){re.escape(END)}", template, re.DOTALL)
    turns = [("system", system[1])] if system else []
    written = [f"{START}{role}\n{text}{END}\n" for role, text in [*turns, ("user", message)]]
    return "".join(written) + f"{START}assistant\n"
