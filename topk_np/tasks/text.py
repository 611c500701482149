"""
Texts byte by byte: where they come from, their sentiment, and which halves belong together.

Source: Hutto and Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text*, ICWSM 2014; the archive in the package vaderSentiment 2.5.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from topk_np._namespace import check_integer
from topk_np.tasks.examples import Examples, Task, guess_by, guess_majority, padded
from topk_np.tasks.names import MissingDataError
from topk_np.tasks.reviews import Archive

__all__ = ["text_classification", "text_retrieval"]

ARCHIVE = Archive(
    "vaderSentiment", "2.5", "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84"
)
INNER = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")


def text_classification(
    label: str = "source",
    *,
    length: int = 160,
    train: int = 20_000,
    validation: int = 1_500,
    test: int = 2_000,
    seed: int = 0,
    path: Path | str | None = None,
) -> Task:
    """
    Classify texts by where they come from, or by their sentiment.

    Parameters
    ----------
    label : str
        "source": a movie review, an Amazon review, a newspaper or a tweet. "sentiment": whether
        the mean rating is above zero.
    length : int
        Bytes that are read of a text, at least 1.
    train, validation, test : int
        Examples of each split, at least 1; no text comes twice.
    seed : int
        The seed of what is drawn, at least 0.
    path : path, optional
        The source archive of vaderSentiment 2.5; by default that in the cache folder.

    Returns
    -------
    Task
        A token is 1 + the byte. With the baselines "majority" and "length", the class that goes
        most often with the length.

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If `label` is another one, or a split is empty or larger than the data.
    MissingDataError
        If the archive is not there, or is damaged.
    """
    if label not in ("source", "sentiment"):
        raise ValueError(f"label must be source or sentiment, got {label!r}")
    length = check_integer("length", length, least=1)
    found: dict[bytes, int] = {}
    for source, rating, text in _snippets(path):
        found.setdefault(text[:length], source if label == "source" else int(rating > 0))
    texts, labels = list(found), np.array(list(found.values()), np.int64)
    sizes = {"train": train, "validation": validation, "test": test}
    splits = {}
    for split, places in _splits(len(texts), sizes, seed).items():
        splits[split] = Examples(*padded(_tokens(texts, places), np.uint16), labels[places])
    learn, judge = splits["train"], splits["test"]
    baselines = {
        "majority": guess_majority(learn, judge),
        "length": guess_by(learn.lengths // 8, learn, judge.lengths // 8, judge),
    }
    classes = len(SOURCES) if label == "source" else 2
    return Task(f"text {label}", 257, classes, **splits, baselines=baselines)


def text_retrieval(
    length: int = 40,
    *,
    train: int = 10_000,
    validation: int = 1_000,
    test: int = 2_000,
    seed: int = 0,
    path: Path | str | None = None,
) -> Task:
    """
    Tell whether the second half of a text belongs to the first.

    Parameters
    ----------
    length : int
        Bytes of each half, at least 1: those before and after the middle of a text, which has
        twice that number or more, so that lengths tell nothing.
    train, validation, test : int
        Examples of each split, at least 1; of every second one, the second half is that of another
        text of the same split.
    seed : int
        The seed of what is drawn, at least 0.
    path : path, optional
        As in `text_classification`.

    Returns
    -------
    Task
        Of pairs, a token being 1 + the byte. With the baseline "majority".

    Raises
    ------
    TypeError, ValueError, MissingDataError
        As in `text_classification`.
    """
    length = check_integer("length", length, least=1)
    texts = list(dict.fromkeys(text for _, _, text in _snippets(path) if len(text) >= 2 * length))
    sizes = {"train": train, "validation": validation, "test": test}
    splits = {}
    for split, places in _splits(len(texts), sizes, seed).items():
        pairs = np.empty((len(places), 2, length), np.uint16)
        for pair, place in zip(pairs, places, strict=True):
            text, middle = texts[place], len(texts[place]) // 2
            pair[0] = 1 + np.frombuffer(text[middle - length : middle], np.uint8)
            pair[1] = 1 + np.frombuffer(text[middle : middle + length], np.uint8)
        # The second halves of examples 0, 2, 4... are handed on among them.
        pairs[::2, 1] = np.roll(pairs[::2, 1], -1, axis=0)
        lengths = np.full(pairs.shape[:2], length)
        splits[split] = Examples(pairs, lengths, np.arange(len(places)) % 2)
    baselines = {"majority": guess_majority(splits["train"], splits["test"])}
    return Task("text retrieval", 257, 2, **splits, baselines=baselines)


def _splits(count: int, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Draw distinct places below `count` for each split."""
    sizes = {split: check_integer(split, size, least=1) for split, size in sizes.items()}
    if sum(sizes.values()) > count:
        raise ValueError(
            f"{' + '.join(sizes)} must be at most {count:,}, got {sum(sizes.values()):,}"
        )
    order = np.random.default_rng(check_integer("seed", seed, least=0)).permutation(count)
    ends = np.cumsum(list(sizes.values()))
    return dict(zip(sizes, np.split(order[: ends[-1]], ends[:-1]), strict=True))


def _tokens(texts: list[bytes], places: Any) -> list[list[int]]:
    return [[1 + byte for byte in texts[place]] for place in places]


def _snippets(path: Path | str | None) -> list[tuple[int, float, bytes]]:
    """Source, rating and text of all snippets."""
    content = ARCHIVE.read(path)
    try:
        with (
            tarfile.open(fileobj=io.BytesIO(content)) as outer,
            tarfile.open(fileobj=_member(outer, INNER)) as inner,
        ):
            files = [
                _member(inner, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read()
                for name in SOURCES
            ]
        rows = [
            (source, line.split(b"\t", 2))
            for source, file in enumerate(files)
            for line in file.splitlines()
            if line
        ]
        return [(source, float(rating), text) for source, (_, rating, text) in rows if text]
    except (tarfile.TarError, zlib.error, EOFError, KeyError, ValueError, OSError) as error:
        raise MissingDataError(f"{path or ARCHIVE.name} must be as published: {error}") from error


def _member(archive: tarfile.TarFile, name: str) -> io.BytesIO:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is no file")
    return io.BytesIO(file.read())
