"""Read IDX files, the format of MNIST and its kin: a magic number, sizes, bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

UNSIGNED_BYTES = b"\0\0\x08"  # the only type these data sets use
GZIP = b"\x1f\x8b"


def read_idx(path: Path, ndim: int, /) -> np.ndarray[Any, Any]:
    """
    The array in an IDX file of unsigned bytes, gzipped or not.

    Raises
    ------
    ValueError
        If it is no such file, has another number of axes, or is cut short or too long.
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
