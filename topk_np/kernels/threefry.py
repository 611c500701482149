"""Threefry-2x32-20, the counter-based random bits of dropout, in plain array API calls."""

from __future__ import annotations

from typing import Any

from topk_np._namespace import Array

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # as is the next, of the paper
PARITY = 0x1BD11BDA


def threefry(key: tuple[Any, Any], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """
    Two int32 of random bits for each key and counter, which broadcast.

    Salmon, Moraes, Dror and Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3*, 2011, in 32-bit
    integers that wrap around.
    """
    x, y = counter
    keys = (*key, key[0] ^ key[1] ^ PARITY)
    x, y = x + keys[0], y + keys[1]
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x = x + y
            # The shift to the right repeats the sign, which the mask takes away again.
            y = (y << rotation) | ((y >> (32 - rotation)) & ((1 << rotation) - 1))
            y = x ^ y
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + (block + 1)
    return x, y
