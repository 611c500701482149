"""Checkpoints that are cut off or lie: an error in one line, or another model; never a crash."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.models.golden import DATA
from tests.models.tiny import write_gguf
from topk_np.models import load_model
from topk_np.models.gguf import read_gguf

CLEAR = r"checkpoint|config|tensor|is not |must |has no |cannot dequantise"  # not NumPy's errors
MOST = 2**24  # bytes that reading the tiny model may take, whatever its header says


def try_to_read(path: Path, data: bytes) -> bool:
    """Whether a model can be read with a file; otherwise an error of its own says why not."""
    path.write_bytes(data)
    why_not = ""
    tracemalloc.start()
    try:
        load_model(path if path.suffix == ".gguf" else path.parent)
    except (ValueError, TypeError) as error:
        why_not = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST
    assert not why_not or re.search(CLEAR, why_not), why_not
    return not why_not


def changed(data: bytes, place: int, bit: int) -> bytes:
    """The data with one bit flipped."""
    flipped = bytearray(data)
    flipped[place] ^= 1 << bit
    return bytes(flipped)


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
        read += try_to_read(tmp_path / "x.gguf", changed(data, place, i % 8))
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


@pytest.fixture(params=["bert", "llama", "t5_relu"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint in safetensors."""
    return Path(shutil.copytree(DATA / request.param, tmp_path / "model"))


def test_safetensors_cut_anywhere_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    places = {*range(10), *range(10, start, 997), *range(start, len(data), 30_011), len(data) - 1}
    assert not any(try_to_read(path, data[:place]) for place in places)
    assert try_to_read(path, data)


def test_a_flipped_bit_in_the_header_of_safetensors_is_refused(folder: Path) -> None:
    """But where the header says what no model depends on: the file's own remarks."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    remarks = header.find(b'"__metadata__":')
    free = range(remarks, header.find(b"}", remarks) + 1)
    places = np.random.default_rng(0).permutation(len(header.rstrip()))[:60].tolist()
    for i, place in enumerate(range(8)):
        assert not try_to_read(path, changed(data, place, i))  # a length that lies
    for i, place in enumerate(place for place in places if place not in free):
        assert not try_to_read(path, changed(data, 8 + place, i % 8))


def test_a_flipped_bit_of_a_weight_loads_as_another_weight(folder: Path) -> None:
    """Nothing in these files says that it is wrong: only our own have a hash of what they hold."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    assert try_to_read(path, changed(data, len(data) - 1, 0))


def test_a_flipped_bit_of_the_config_is_refused_or_reads_as_another_model(folder: Path) -> None:
    path = folder / "config.json"
    data = path.read_bytes()
    for i, place in enumerate(np.random.default_rng(1).permutation(len(data))[:60].tolist()):
        try_to_read(path, changed(data, place, i % 8))


@pytest.mark.parametrize("value", [None, 0, -1, 2**70, 10**9, 1.5, "x", [], {}, True])
def test_no_field_of_the_config_takes_memory_or_time_by_lying(folder: Path, value: Any) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    for name in fields:
        try_to_read(path, json.dumps({**fields, name: value}).encode())
