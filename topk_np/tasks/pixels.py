"""
Fashion-MNIST, read pixel by pixel.

Source: Xiao, Rasul and Vollgraf, *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms*, 2017, arXiv:1708.07747.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from topk_np._namespace import check_integer
from topk_np.fetch import cache_folder
from topk_np.tasks.examples import Examples, Task, guess_majority
from topk_np.tasks.names import MissingDataError

__all__ = ["fashion_mnist"]

UNSIGNED_BYTES = b"\0\0\x08"  # the only type of IDX file that is read
GZIP = b"\x1f\x8b"
DEBIAN = Path("usr/share/datasets/fashion-mnist")  # inside the package dataset-fashion-mnist


def fashion_mnist(
    side: int = 14,
    *,
    train: int = 58_000,
    validation: int = 2_000,
    test: int = 10_000,
    seed: int = 0,
    folder: Path | str | None = None,
) -> Task:
    """
    Read Fashion-MNIST as sequences of grey levels, row by row.

    Parameters
    ----------
    side : int
        28, the pictures as they are, or 14: each pixel the mean of four.
    train, validation : int
        Examples of these splits, at least 1, drawn from the 60,000 to learn from.
    test : int
        Examples of this one, at least 1, drawn from the 10,000 to be judged by.
    seed : int
        The seed of what is drawn, at least 0.
    folder : path, optional
        Where the four IDX files are, gzipped or not. By default they are looked for in the folder
        fashion-mnist of the cache, and where the Debian package dataset-fashion-mnist puts them.

    Returns
    -------
    Task
        A token is 1 + the grey level. With the baselines "majority" and "nearest mean", the class
        whose mean picture is nearest.

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If `side` is another one, or a split is empty or larger than the data.
    MissingDataError
        If a file is not there, or is damaged.
    """
    if side not in (14, 28):
        raise ValueError(f"side must be 14 or 28, got {side!r}")
    rng = np.random.default_rng(check_integer("seed", seed, least=0))
    place = _folder() if folder is None else Path(folder)
    learned = _read(place, "train", {"train": train, "validation": validation}, side, rng)
    judged = _read(place, "t10k", {"test": test}, side, rng)
    splits = learned | judged
    learn, judge = splits["train"], splits["test"]
    baselines = {
        "majority": guess_majority(learn, judge),
        "nearest mean": _nearest_mean(learn, judge),
    }
    return Task(f"pixels {side * side}", 257, 10, **splits, baselines=baselines)


def _folder() -> Path:
    """The folder that has the files."""
    cached = cache_folder() / "fashion-mnist"
    for folder in (cached, cached / DEBIAN, "/" / DEBIAN):
        if any(folder.glob("train-images-idx3-ubyte*")):
            return folder
    raise MissingDataError(
        f"Fashion-MNIST is neither in {cached} nor in {'/' / DEBIAN}: put its four IDX files into "
        "the first, or run `apt-get install dataset-fashion-mnist`, or `apt-get download "
        f"dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb {cached}`"
    )


def _read(
    folder: Path, prefix: str, sizes: dict[str, int], side: int, rng: np.random.Generator
) -> dict[str, Examples]:
    """Splits drawn from one of the two pairs of files."""
    images = _read_file(folder, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_file(folder, f"{prefix}-labels-idx1-ubyte", 1)
    if images.shape != (len(labels), 28, 28) or (labels > 9).any():
        raise MissingDataError(
            f"{folder} must hold as many 28 x 28 pictures as labels below 10 in {prefix}-*, got "
            f"shapes {images.shape} and {labels.shape}, and labels up to {labels.max(initial=0)}"
        )
    sizes = {split: check_integer(split, size, least=1) for split, size in sizes.items()}
    if sum(sizes.values()) > len(labels):
        raise ValueError(
            f"{' + '.join(sizes)} must be at most {len(labels):,}, got {sum(sizes.values()):,}"
        )
    order, splits = rng.permutation(len(labels)), {}
    for split, size in sizes.items():
        chosen, order = order[:size], order[size:]
        levels = images[chosen].astype(np.uint16)
        if side == 14:
            levels = (levels.reshape(size, 14, 2, 14, 2).sum((2, 4), dtype=np.uint16) + 2) // 4
        tokens = 1 + levels.reshape(size, side * side)
        lengths = np.full(size, side * side)
        splits[split] = Examples(tokens, lengths, labels[chosen].astype(np.int64))
    return splits


def _read_file(folder: Path, name: str, ndim: int) -> np.ndarray[Any, Any]:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            try:
                return read_idx(path, ndim)
            except ValueError as error:
                raise MissingDataError(str(error)) from error
    raise MissingDataError(f"{folder} must hold {name} or {name}.gz")


def read_idx(path: Path, ndim: int, /) -> np.ndarray[Any, Any]:
    """
    Read an IDX file of unsigned bytes, gzipped or not: a magic number, sizes, bytes.

    Raises
    ------
    ValueError
        If it is another kind of file, has another number of axes, or is cut short or too long.
    """
    data = path.read_bytes()
    if data.startswith(GZIP):
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} must be a whole gzip file: {error}") from error
    magic = UNSIGNED_BYTES + bytes([ndim])
    if data[:4] != magic:
        raise ValueError(f"{path} must start with {magic.hex()}, got {data[:4].hex()}")
    start = 4 + 4 * ndim
    shape = tuple(int.from_bytes(data[place : place + 4], "big") for place in range(4, start, 4))
    if len(data) != start + math.prod(shape):
        raise ValueError(
            f"{path} must have {start + math.prod(shape):,} bytes to hold shape {shape}, "
            f"got {len(data):,}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _nearest_mean(train: Examples, test: Examples) -> float:
    """Accuracy of the class whose mean picture is nearest."""
    classes = np.unique(train.labels)
    means = np.stack(
        [train.tokens[train.labels == label].mean(0, dtype=np.float32) for label in classes]
    )
    # |x - m|^2 = |x|^2 - 2 x m + |m|^2, where the first is the same for all m
    scores = test.tokens.astype(np.float32) @ means.T - (means**2).sum(1) / 2
    return float(np.mean(classes[scores.argmax(1)] == test.labels))
