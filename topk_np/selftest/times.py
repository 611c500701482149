"""How long the kernels take, and what they replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

import topk_np
from topk_np._process import interleave
from topk_np.kernels import engine
from topk_np.selftest.device import Device

OURS = "topk_np"
KEPT, WIDTH, DENSE_CHUNK = 64, 64, 1024
# Where the device is slow and where it is fast: rows and columns to select from, heads and
# lengths of attention.
SELECTIONS = {False: ((16, 512),), True: ((1024, 4096), (1024, 65536))}
ATTENTIONS = {False: ((1, 128),), True: ((8, 1024), (8, 4096), (8, 16384))}


@dataclass(frozen=True)
class Timing:
    """Median seconds of several ways to do the same."""

    what: str
    seconds: dict[str, float]


def selection(device: Device, rows: int, columns: int, repeats: int) -> Timing:
    """The k largest of each row: our kernel, and the library's own functions on float32."""
    drawn = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    scores, xp = device.asarray(drawn), device.xp
    select = engine(device.namespace()).select
    runs = {
        OURS: lambda: select(scores, KEPT),
        "argpartition": lambda: xp.argpartition(-scores, KEPT - 1, axis=1)[:, :KEPT],
        "argsort": lambda: xp.argsort(-scores, axis=1)[:, :KEPT],
    }
    return _time(f"{KEPT} of {columns:,}, {rows:,} rows", runs, device, repeats)


def attention(device: Device, heads: int, length: int, repeats: int) -> Timing:
    """Attention forward and backward, top-k and dense, the latter in chunks, in float32."""
    drawn = np.random.default_rng(0).standard_normal((3, heads, length, WIDTH), np.float32)
    query, key, value = (device.asarray(array) for array in drawn)

    def topk() -> Any:
        out, residuals = topk_np.topk_attention_fwd(query, key, value, k=KEPT)
        return topk_np.topk_attention_bwd(residuals, out)

    def dense() -> Any:
        out, residuals = topk_np.dense_attention_fwd(query, key, value, chunk_size=DENSE_CHUNK)
        return topk_np.dense_attention_bwd(residuals, out)

    runs: dict[str, Callable[[], Any]] = {OURS: topk, "dense attention": dense}
    return _time(f"attention, {heads} heads, length {length:,}", runs, device, repeats)


def measure(device: Device, repeats: int) -> list[Timing]:
    """All timings, for sizes that the device is up to."""
    return [
        *(selection(device, *shape, repeats) for shape in SELECTIONS[device.fast]),
        *(attention(device, *shape, repeats) for shape in ATTENTIONS[device.fast]),
    ]


def _time(what: str, runs: dict[str, Callable[[], Any]], device: Device, repeats: int) -> Timing:
    def to_the_end(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (run(), device.finish())[0]

    seconds = interleave(
        {name: to_the_end(run) for name, run in runs.items()}, repeats, lambda name: None
    )
    return Timing(what, {name: median(found) for name, found in seconds.items()})
