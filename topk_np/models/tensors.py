"""Tensors of safetensors files, by name: memory-mapped, so that what is not used is not read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

INDEX = "model.safetensors.index.json"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
OTHERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")  # buffers, never weights


class Tensors(Mapping[str, np.ndarray]):
    """
    The floating tensors of a safetensors file, or of all files of a checkpoint in several.

    Parameters
    ----------
    path : path
        A file, or a folder with ``model.safetensors`` or an index of several files.

    Raises
    ------
    OSError
        If a file cannot be opened.
    ValueError
        If a file is damaged, or the index does not fit the files.

    Notes
    -----
    Arrays are views of the file, read-only, where its layout allows that.
    """

    def __init__(self, path: Path) -> None:
        self._places: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
        if not path.is_dir():
            self._places = _read_header(path)
        elif (index := path / INDEX).is_file():
            self._add_indexed(index)
        else:
            self._places = _read_header(path / "model.safetensors")

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor of that name, in the dtype it is stored in."""
        data, entry = self._places[name]
        start, stop = entry["data_offsets"]
        dtype = DTYPES[entry["dtype"]]
        if dtype == "bfloat16":
            import ml_dtypes  # noqa: F401  makes the name known to NumPy
        flat = data[start:stop].view(dtype)
        return np.require(flat.reshape(entry["shape"]), requirements=["A"])

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._places)

    def _add_indexed(self, index: Path) -> None:
        try:
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(files.values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} is not an index of tensors: {error}") from error
        for file in names:
            found = _read_header(index.parent / file)
            for name in (name for name, place in files.items() if place == file):
                if name not in found:
                    raise ValueError(
                        f"{index.parent / file} has no tensor {name}, against the index"
                    )
            self._places |= found


def _read_header(path: Path) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """For each tensor the file's data, and what the header says of it."""
    try:
        return _parse_header(path)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def _parse_header(path: Path) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    if path.stat().st_size < 8:
        raise ValueError("it is too short")
    whole = np.asarray(np.memmap(path, np.uint8, mode="r"))
    length = int.from_bytes(whole[:8].tobytes(), "little")
    data = whole[8 + length :]
    header = json.loads(whole[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    places = {}
    for name, entry in header.items():
        if entry["dtype"] in OTHERS:
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} has dtype {entry['dtype']}, allowed are {', '.join(DTYPES)}")
        start, stop = entry["data_offsets"]
        size = int(entry["dtype"].strip("BF")) // 8
        if not 0 <= start <= stop <= len(data):
            raise ValueError(f"it ends before {name}")
        if stop - start != size * int(np.prod(entry["shape"], dtype=np.int64)):
            raise ValueError(f"{name} has not as many bytes as shape {entry['shape']} needs")
        places[name] = data, entry
    return places
