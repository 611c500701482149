"""
The primitives that deserve a fast path: one module or package an engine, the same names in each.

Arrays are stacks of G heads: scores (G, C, n) of C queries and n keys, rows (G, C, ·), matrices
(G, N, ·) of keys or values, in which heads may be the same memory. What a query keeps are K slots,
``indices`` (G, C, K) in ascending order with -1 in unused slots, which come last.

`topk_np.kernels.portable` defines what each function computes. An engine also says what it can do:

``THREADS``
    Several threads may compute at once, each its own part of one array.
``MAY_WAIT``
    A number may be looked at; on a device that would mean to wait for it.
``WHOLE_BUDGET``
    One task at a time gets the whole memory budget, as a device works on one at a time.
``DOUBLE``
    float64 is there, whatever the inputs' dtype.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from topk_np._namespace import Array, Namespace, is_cupy, is_numpy

CHOICES = ("", "atomic", "numpy", "portable")  # of TOPK_NP_KERNELS

Engine = Any  # a module or package of this one


class Selection(NamedTuple):
    """The selected entries of each row of scores (G, C, n), in ascending order of their index."""

    values: Array
    """(G, C, K) in the dtype of the scores; -inf in unused slots."""
    indices: Array
    """(G, C, K) int32; -1 in unused slots, which come last."""


def engine(xp: Namespace) -> Engine:
    """
    The engine for the arrays of `xp`.

    The environment variable ``TOPK_NP_KERNELS`` chooses another: ``portable`` on any library,
    ``numpy`` on NumPy, and on CuPy ``atomic``, which adds gradients up without sorting, rounded
    differently every time. A choice speaks for the arrays of its own library alone.
    """
    chosen = os.environ.get("TOPK_NP_KERNELS", "")
    if chosen not in CHOICES:
        raise ValueError(
            "TOPK_NP_KERNELS must be empty, 'numpy', 'portable' or 'atomic' (on CuPy), "
            f"got {chosen!r}"
        )
    if chosen != "portable" and is_numpy(xp):
        return _module("numpy")
    if chosen != "portable" and is_cupy(xp):
        return _module("cupy").atomic if chosen == "atomic" else _module("cupy")
    return _module("portable")


@cache
def _module(name: str) -> Engine:
    return import_module(f"topk_np.kernels.{name}")
