"""GGUF files that are cut off or lie: an error in one line, or another model; never a crash."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.models.tiny import write_gguf
from topk_np.models.checkpoint import read_gguf

MOST = 2**24  # bytes that reading the tiny model may take, whatever its header says


def try_to_read(path: Path, data: bytes) -> bool:
    """Whether a file can be read; otherwise a ValueError says why not."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        read_gguf(path)
    except ValueError:
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST
    return True


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """A file, and where its weights begin."""
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return path.read_bytes(), gguf.GGUFReader(path).data_offset


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, whole: tuple[bytes, int]) -> None:
    data, start = whole
    places = {0, 3, *range(7, start, 131), *range(start, len(data), 6007), len(data) - 1}
    assert not any(try_to_read(tmp_path / "x.gguf", data[:place]) for place in places)


def test_a_flipped_bit_of_the_header_is_refused_or_reads_as_another_model(
    tmp_path: Path, whole: tuple[bytes, int]
) -> None:
    data, start = whole
    read = 0
    places = np.random.default_rng(0).permutation(start)[:60].tolist()
    for i, place in enumerate([0, 4, 8, 16, *places]):  # magic, version, two counts; anywhere
        changed = bytearray(data)
        changed[place] ^= 1 << (i % 8)
        read += try_to_read(tmp_path / "x.gguf", bytes(changed))
    assert read < 40


def behind(data: bytes, name: bytes) -> int:
    """The place of a tensor's sizes in the header; its kind follows, of four bytes."""
    return data.index(name) + len(name) + 4


def test_weights_of_a_kind_that_cannot_be_dequantised_are_named(
    tmp_path: Path, whole: tuple[bytes, int]
) -> None:
    data, _ = whole
    kind = behind(data, b"output_norm.weight") + 8
    path = tmp_path / "x.gguf"
    path.write_bytes(
        data[:kind] + gguf.GGMLQuantizationType.I32.to_bytes(4, "little") + data[kind + 4 :]
    )
    with pytest.raises(ValueError, match=r"x\.gguf holds weights that gguf cannot dequantise"):
        read_gguf(path)


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_shapes_that_do_not_fit_the_number_of_heads_are_refused(tmp_path: Path, heads: int) -> None:
    data = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    name = b"llama.attention.head_count"
    place = data.index(name) + len(name) + 4  # behind the kind of the field
    assert int.from_bytes(data[place : place + 4], "little") == 4
    path = tmp_path / "x.gguf"
    path.write_bytes(data[:place] + heads.to_bytes(4, "little") + data[place + 4 :])
    with pytest.raises(ValueError, match="must"):
        read_gguf(path)


@pytest.mark.parametrize("name", [b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type"])
def test_a_length_that_lies_takes_neither_memory_nor_time(
    tmp_path: Path, whole: tuple[bytes, int], name: bytes
) -> None:
    data, _ = whole
    place = data.index(name) + len(name) + 8  # behind the kinds of the field and its items
    lying = data[:place] + (2**60).to_bytes(8, "little") + data[place + 8 :]
    assert not try_to_read(tmp_path / "x.gguf", lying)
