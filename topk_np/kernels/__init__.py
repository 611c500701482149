"""The few primitives that need a fast path: one module an engine, the same functions in each."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from topk_np._namespace import Array, Namespace, is_cupy, is_numpy

CHOICES = ("", "portable", "atomic")  # of TOPK_NP_KERNELS
GATHERED_BYTES = 2**19  # gathered rows that a product holds at once


class Selection(NamedTuple):
    """
    The selected entries of each row of a matrix (C, N), in ascending order of their index.

    A row with fewer than K allowed entries fills its first ``counts[i]`` slots; the others hold
    the value -inf and the index -1.
    """

    values: Array
    """(C, K), the matrix's dtype."""
    indices: Array
    """(C, K) int32."""
    counts: Array
    """(C,) int32, the number of slots in use."""


def engine(xp: Namespace) -> Any:
    """
    The engine for the arrays of `xp`.

    The environment variable ``TOPK_NP_KERNELS`` chooses another: ``portable`` on any library, and
    ``atomic`` on CuPy, which adds gradients up without sorting, rounded differently every time.
    """
    chosen = os.environ.get("TOPK_NP_KERNELS", "")
    if chosen not in CHOICES:
        raise ValueError(f"TOPK_NP_KERNELS must be empty, 'portable' or 'atomic', got {chosen!r}")
    if chosen != "portable":
        if is_numpy(xp):
            return _module("numpy")
        if is_cupy(xp):
            return _module("cupy_atomic" if chosen == "atomic" else "cupy")
    return _module("portable")


def is_portable(xp: Namespace) -> bool:
    """Whether the arrays of `xp` are worked on by the readable definition."""
    return engine(xp) is _module("portable")


@cache
def _module(name: str) -> Any:
    return import_module(f"topk_np.kernels.{name}")
