"""The weights of a safetensors checkpoint, memory-mapped, so that what is not used is not read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from topk_np.training.params import read_tensors

INDEX = "model.safetensors.index.json"
WEIGHTS = ("float64", "float32", "float16", "bfloat16")  # tensors of other dtypes are buffers


def read_checkpoint(path: Path, /) -> dict[str, np.ndarray]:
    """
    Map the floating-point tensors of a checkpoint into memory.

    Parameters
    ----------
    path : path
        A file, or a folder with ``model.safetensors`` or an index of several files.

    Returns
    -------
    dict of str to array
        By name, read-only views of the files where their layout allows that.

    Raises
    ------
    OSError
        If a file cannot be opened.
    ValueError
        If a file is damaged, or the index does not fit the files.
    """
    if not path.is_dir():
        return _weights(path)
    index = path / INDEX
    return _indexed(index) if index.is_file() else _weights(path / "model.safetensors")


def _indexed(index: Path) -> dict[str, np.ndarray]:
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(files.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is not an index of tensors: {error}") from error
    tensors: dict[str, np.ndarray] = {}
    for file in names:
        found = _weights(index.parent / file)
        for name in (name for name, place in files.items() if place == file):
            if name not in found:
                raise ValueError(f"{index.parent / file} has no tensor {name}, against the index")
        tensors |= found
    return tensors


def _weights(path: Path) -> dict[str, np.ndarray]:
    try:
        tensors, _ = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {name: tensor for name, tensor in tensors.items() if tensor.dtype.name in WEIGHTS}
