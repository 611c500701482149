"""Fine-tuning a language model: its settings and texts, and perplexity on what is held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from topk_np._process import UserError, one_thread
from topk_np.models.adapter import MATRICES, Adapter
from topk_np.models.load import family_of
from topk_np.models.model import Model
from topk_np.models.tokenizers import Tokenizer
from topk_np.runs.records import RunSettings

HELD_OUT = 0.1  # of all characters, at least
TESTED = 4096  # tokens at most


@dataclass(frozen=True)
class Settings(RunSettings):
    """Settings of a language model that is fine-tuned."""

    model: str = "smollm2"
    text: tuple[str, ...] = ()
    """Files; none: Python's documentation."""
    attention_k: int | None = None
    ffn_k: int | None = None
    lora: int | None = None
    """The rank of the updates that are learned; None: the weights themselves are."""
    only: tuple[str, ...] = ()
    """Patterns of the paths of what is trained; none: all weights, or all matrices of the blocks"""
    batch: int = 2
    length: int = 512
    learning_rate: float = 1e-3
    seed: int = 0
    recompute: bool = False

    WARMUP = 5

    @property
    def name(self) -> str:
        """Model and method, as in the names of folders."""
        ks = (("attention", self.attention_k), ("ffn", self.ffn_k))
        kept = "".join(f"-{part}{k}" for part, k in ks if k is not None) or "-dense"
        rank = "" if self.lora is None else f"-lora{self.lora}"
        path = Path(self.model)
        model = path.stem if path.suffix == ".gguf" else path.name  # a folder's may have dots
        return f"{model}{kept}{rank}-seed{self.seed}"


def make_adapter(model: Model[Any], settings: Settings) -> Adapter:
    """The part of a model that is trained, before the first step."""
    if settings.lora is None:
        return Adapter.of_weights(model.params, only=settings.only or ("*",))
    rng, only = np.random.default_rng(settings.seed), settings.only or MATRICES
    return Adapter.low_rank(model.params, rng, rank=settings.lora, only=only)


class Texts(NamedTuple):
    """Token ids (Q,) to train on and to test with."""

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
    Read and encode some files, or Python's own documentation where there are none.

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
        return {str(path): _read_file(path) for path in paths}
    from pydoc_data.topics import topics

    return dict(topics)


def split(documents: dict[str, str], /) -> tuple[str, str]:
    """
    Split documents into a text to train on and one to test with, the same every time.

    Whole documents are held out, or the end of a single one. A paragraph that is held out is left
    out of the other documents too.
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
    """Names of documents that hold the wanted share of all characters, at most half of them."""
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
    """A paragraph without indentation and line breaks."""
    return " ".join(paragraph.split())


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--text {path} is not UTF-8 text") from error


class Reading(NamedTuple):
    """Predictions of the next tokens of texts: their loss and accuracy."""

    loss: float
    accuracy: float
    """The share of next tokens that were thought the most probable."""
    tokens: int
    """The number of tokens that were predicted."""

    @property
    def perplexity(self) -> float:
        """Exp of the loss."""
        return float(np.exp(self.loss))


def read(
    model: Model[Any], texts: np.ndarray, tick: Callable[[], object] = lambda: None, /
) -> Reading:
    """Read texts (., Q) one by one; `tick` is called after each."""
    family, losses, hits, count = family_of(model), [], [], 0
    with one_thread():
        for i, tokens in enumerate(texts):
            data, labels = family.examples(model, tokens, np.random.default_rng(i))
            seen, right = family.guess(model, *data)
            losses.append(np.mean(seen.loss, dtype=np.float64))
            hits.append(np.mean(seen.best == right))
            count += labels
            tick()
    return Reading(float(np.mean(losses)), float(np.mean(hits)), count)
