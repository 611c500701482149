"""The few primitives that need a fast path: one module an engine, the same functions in each."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from topk_np._namespace import Array, Namespace, is_numpy

GATHERED_BYTES = 2**18  # gathered rows that a product holds at once


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
    """The engine for the arrays of `xp`; ``TOPK_NP_KERNELS=portable`` forces the portable one."""
    forced = os.environ.get("TOPK_NP_KERNELS", "")
    if forced not in ("", "portable"):
        raise ValueError(f"TOPK_NP_KERNELS must be empty or 'portable', got {forced!r}")
    return _module("numpy" if is_numpy(xp) and not forced else "portable")


@cache
def _module(name: str) -> Any:
    return import_module(f"topk_np.kernels.{name}")
