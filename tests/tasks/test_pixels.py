"""Fashion-MNIST: files of the right form become sequences, others are refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from topk_np.tasks import MissingDataError, load
from topk_np.tasks.pixels import fashion_mnist, read_idx


def idx(array: np.ndarray[Any, Any]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures to learn from, plain, and five to be judged by, gzipped."""
    rng = np.random.default_rng(0)
    for prefix, count, pack, end in (("train", 10, bytes, ""), ("t10k", 5, gzip.compress, ".gz")):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = labels = np.arange(count, dtype=np.uint8) % 10
        (tmp_path / f"{prefix}-images-idx3-ubyte{end}").write_bytes(pack(idx(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte{end}").write_bytes(pack(idx(labels)))
    return tmp_path


def test_pictures_are_read_row_by_row_whole_or_as_means_of_four(folder: Path) -> None:
    sizes = {"train": 7, "validation": 3, "test": 5}
    whole, halved = (fashion_mnist(side, folder=folder, **sizes) for side in (28, 14))
    assert whole.train.tokens.shape == (7, 784)
    labels = np.concatenate([whole.train.labels, whole.validation.labels])
    assert sorted(labels) == list(range(10))
    assert np.array_equal(whole.train.tokens[:, 0] - 1, whole.train.labels)  # as was written
    assert np.array_equal(whole.test.labels, halved.test.labels)
    mean = (whole.test.tokens.reshape(5, 28, 28) - 1.0)[:, 2:4, 4:6].mean((1, 2))
    found = halved.test.tokens.reshape(5, 14, 14)[:, 1, 2] - 1.0
    assert np.abs(found - mean).max() <= 0.5
    assert set(whole.baselines) == {"majority", "nearest mean"}


def test_missing_data_say_what_brings_them(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"train \+ validation must be at most 10, got 12"):
        fashion_mnist(folder=folder, train=10, validation=2, test=1)
    with pytest.raises(ValueError, match="side must be 14 or 28, got 7"):
        fashion_mnist(7)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MissingDataError, match="must hold t10k-labels-idx1-ubyte or"):
        fashion_mnist(folder=folder, train=5, validation=2, test=1)
    monkeypatch.setenv("TOPK_NP_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr("topk_np.tasks.pixels.DEBIAN", Path("nowhere"))
    with pytest.raises(MissingDataError, match="apt-get install dataset-fashion-mnist"):
        load("pixels")


@pytest.mark.parametrize("damage", ["cut", "long", "magic", "axes", "gzip"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    good = idx(np.zeros((2, 3), np.uint8))
    bad = {
        "cut": good[:-1],
        "long": good + b"x",
        "magic": b"\1" + good[1:],
        "axes": idx(np.zeros(3, np.uint8)),
        "gzip": gzip.compress(good)[:-3],
    }
    path = tmp_path / "file"
    path.write_bytes(good)
    assert read_idx(path, 2).shape == (2, 3)
    path.write_bytes(bad[damage])
    with pytest.raises(ValueError, match=r"must (start with|have|be a whole)"):
        read_idx(path, 2)
