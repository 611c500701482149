"""Texts to fine-tune on, and others to test with that have no paragraph in common with them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from topk_np._process import UserError
from topk_np.models.tokenizer import Tokenizer

HELD_OUT = 0.1  # of all characters, at least
TESTED = 4096  # tokens at most


class Texts(NamedTuple):
    """Token ids (Q,) of what is read in training, and of what is held out."""

    training: np.ndarray
    held_out: np.ndarray

    def batch(self, size: int, length: int, /, *, seed: int, step: int) -> np.ndarray:
        """(size, length) of the training text, from places that seed and step alone decide."""
        rng = np.random.default_rng((seed, step))
        starts = rng.integers(0, len(self.training) - length + 1, size)
        return np.take(self.training, starts[:, None] + np.arange(length))

    def tests(self, length: int, /) -> np.ndarray:
        """(., length) of the held-out text, one after the other: `TESTED` tokens at most."""
        rows = min(len(self.held_out), max(TESTED, length)) // length
        return self.held_out[: rows * length].reshape(rows, length)


def read_texts(tokenizer: Tokenizer, paths: Sequence[Path], length: int, /) -> Texts:
    """
    The tokens of some files, or of Python's own documentation where there are none.

    Raises
    ------
    UserError
        If a file cannot be read, or a part is shorter than `length` tokens.
    """
    training, held_out = split(documents(paths))
    texts = Texts(tokenizer.encode(training), tokenizer.encode(held_out))
    for name, tokens in texts._asdict().items():
        if len(tokens) < length:
            raise UserError(
                f"--text: the part that is {name.replace('_', ' ')} must have at least --length "
                f"{length} tokens, got {len(tokens)}"
            )
    return texts


def documents(paths: Sequence[Path], /) -> dict[str, str]:
    """Texts by name: the files, or the topics of the documentation."""
    if paths:
        return {str(path): _read(path) for path in paths}
    from pydoc_data.topics import topics

    return dict(topics)


def split(documents: dict[str, str], /) -> tuple[str, str]:
    """
    All that is trained on, and all that is held out, the same every time.

    Whole documents are held out, or the end of a single one. A paragraph that they have too is left
    out of the others.
    """
    if len(documents) == 1:
        (text,) = documents.values()
        parts = _paragraphs(text)
        cut = len(parts) - math.ceil(HELD_OUT * len(parts))
        training, held_out = parts[:cut], parts[cut:]
    else:
        names = _held_out(documents)
        training = [
            part
            for name, text in documents.items()
            if name not in names
            for part in _paragraphs(text)
        ]
        held_out = [part for name in names for part in _paragraphs(documents[name])]
    seen = set(map(_plain, held_out))
    others = [part for part in training if _plain(part) not in seen]
    return "\n\n".join(others), "\n\n".join(held_out)


def _held_out(documents: dict[str, str]) -> list[str]:
    """Names of documents that have the wanted share of all characters, but at most of half."""
    wanted = HELD_OUT * sum(map(len, documents.values()))
    order = sorted(documents, key=lambda name: (hashlib.sha256(name.encode()).digest(), name))
    names: list[str] = []
    for name in order[: len(order) // 2]:
        if sum(len(documents[name]) for name in names) < wanted:
            names.append(name)
    return names


def _paragraphs(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part.strip()]


def _plain(paragraph: str) -> str:
    """However it is indented and broken into lines."""
    return " ".join(paragraph.split())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--text {path} is not UTF-8 text") from error
