"""One drawn case of each CUDA kernel that takes scores, compared with NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

import topk_np.kernels.portable as portable
from tests.kernels.cuda_program import Program
from topk_np.kernels import cuda

Rng = np.random.Generator
BITS: dict[str, Any] = {
    "float16": np.uint16,
    "bfloat16": np.uint16,
    "float32": np.uint32,
    "float64": np.uint64,
}
SPECIAL = np.asarray([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0])


@dataclass(frozen=True)
class Launch:
    """How kernels are started: no result may depend on it."""

    blocks: int = 2
    threads: int = 64
    order: int = 0
    longest: int = 300
    """The longest row that is drawn."""

    def start(self, program: Program, kernel: str, *arguments: Any) -> list[np.ndarray]:
        return program.launch(
            kernel, *arguments, blocks=self.blocks, threads=self.threads, order=self.order
        )


Case = Callable[..., None]  # of a program, random numbers, a launch, and formats


def to_bits(array: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as the bits of a format, rounded towards zero where that is bfloat16."""
    if dtype == "bfloat16":
        return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return array.astype(dtype).view(BITS[dtype])


def from_bits(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers that bits stand for; those of bfloat16 as float32."""
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(dtype)


def draw_scores(rng: Rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Bits of scores: any bits, normal numbers, ties, special values, subnormals, mostly -inf."""
    kind = rng.integers(8)
    if kind == 0:
        return rng.integers(0, 2 ** (8 * BITS[dtype]().itemsize), shape, BITS[dtype])
    if kind == 1:
        return rng.integers(0, 20, shape).astype(BITS[dtype])  # zero and the least subnormals
    if kind == 2:
        return to_bits(np.where(rng.random(shape) < 0.9, -np.inf, rng.normal(size=shape)), dtype)
    if kind == 3:
        return to_bits(rng.choice(SPECIAL, shape), dtype)
    if kind == 4:
        return to_bits(np.full(shape, rng.choice(SPECIAL)), dtype)
    if kind == 5:
        return to_bits(np.sort(rng.integers(-9, 9, shape).astype(float), axis=1), dtype)
    return to_bits(rng.normal(size=shape), dtype)


def select(program: Program, rng: Rng, launch: Launch, dtype: str = "float32") -> None:
    """The k best of each row, which comes in blocks or as a whole, and not a slot beyond."""
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(1, launch.longest))
    k = [1, columns, -(-columns // 2), int(rng.integers(1, columns + 1))][rng.integers(4)]
    bits = draw_scores(rng, (rows, columns), dtype)
    expected = portable.select(from_bits(bits, dtype), k).indices
    kernel = cuda.instance("select", dtype)
    blocks = int(rng.integers(1, 5))
    edges = [0, *np.sort(rng.integers(0, columns + 1, blocks - 1)).tolist(), columns]
    best: tuple[Any, Any] = (0, 0)
    kept, floors = 0, 0 if blocks == 1 else ~np.zeros(rows, bits.dtype)  # to be written first
    for start, stop in pairwise(edges):
        slots, wanted = min(k, kept + stop - start), blocks > 1 or bool(rng.random() < 0.5)
        if slots == 0:
            continue
        room = np.full((rows, slots), 7, bits.dtype), np.full((rows, slots), -7, np.int32)
        places = np.full((rows, slots), -7, np.int32) if wanted else 0
        given = np.ascontiguousarray(bits[:, start:stop]), rows, stop - start, start, *best, kept
        left = launch.start(program, kernel, *given, floors, slots, *room, places)
        if wanted:
            *left, places = left
            before = best[1] if kept else np.zeros((rows, 0), np.int32)
            both = np.concatenate([before, np.tile(np.arange(start, stop), (rows, 1))], axis=1)
            named = np.take_along_axis(both, np.where(places < 0, 0, places), 1)
            np.testing.assert_array_equal(left[-1], np.where(places < 0, -1, named))
        *left, values, indices = left
        best, kept = (values, indices), slots
        floors = left[-1] if blocks > 1 else 0
    np.testing.assert_array_equal(best[1], expected)
    taken = np.take_along_axis(bits, np.where(expected < 0, 0, expected), 1)
    free = to_bits(np.asarray(-np.inf), dtype)
    np.testing.assert_array_equal(best[0], np.where(expected < 0, free, taken))


def hide_outside(program: Program, rng: Rng, launch: Launch, dtype: str = "float32") -> None:
    """What lies outside of a band, the same for all heads or one of each, and nothing else."""
    heads, rows, columns = int(rng.integers(1, 4)), *map(int, rng.integers(1, 90, 2))
    scores = rng.normal(size=(heads, rows, columns)).astype(dtype)
    edges: Any = rng.integers(-100, 100, (2, heads))
    first, last = edges[:, :, None, None]
    if rng.random() < 0.5:
        first, last = map(int, edges[:, 0])
        given: tuple[Any, ...] = (0, first, last)
    else:
        given = (edges, 0, 0)
    diagonal = np.arange(columns) - np.arange(rows)[:, None]
    expected = np.where((diagonal >= first) & (diagonal <= last), scores, -np.inf)
    kernel = cuda.instance("hide_outside", dtype)
    hidden, *_ = launch.start(program, kernel, scores, *scores.shape, *given)
    np.testing.assert_array_equal(hidden, expected)


def draw_rows(rng: Rng, launch: Launch, dtype: str) -> np.ndarray:
    """Scores with -inf here and there, in some of all rows alone, and large ones, infinite, NaN."""
    shape = int(rng.integers(1, 5)), int(rng.integers(1, launch.longest))
    scores = rng.normal(scale=rng.choice([1.0, 300.0]), size=shape)
    scores[rng.random(shape) < rng.choice([0, 0.5, 1])] = -np.inf
    if rng.random() < 0.3:
        scores[0, rng.integers(shape[1])] = rng.choice([np.nan, np.inf])
    return scores.astype(dtype)


def softmax(program: Program, rng: Rng, launch: Launch, dtype: str = "float32") -> None:
    """Row by row what plain NumPy gives."""
    scores = draw_rows(rng, launch, dtype)
    room = np.full(scores.shape, 7, dtype)
    kernel = cuda.instance("softmax", dtype)
    *_, weights = launch.start(program, kernel, scores, *scores.shape, room)
    with np.errstate(invalid="ignore"):
        expected = portable.softmax(scores.astype(np.float64))
    tolerance = 40 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(weights, expected, rtol=tolerance, atol=tolerance**2)


def softmax_vjp(program: Program, rng: Rng, launch: Launch, dtype: str = "float32") -> None:
    """Row by row what plain NumPy gives."""
    with np.errstate(invalid="ignore"):
        weights = portable.softmax(draw_rows(rng, launch, dtype))
    dweights = rng.normal(size=weights.shape).astype(dtype)
    room = np.full(weights.shape, 7, dtype)
    kernel = cuda.instance("softmax_vjp", dtype)
    *_, dscores = launch.start(program, kernel, weights, dweights, *weights.shape, room)
    expected = portable.softmax_vjp(weights.astype(np.float64), dweights)
    np.testing.assert_allclose(dscores, expected, rtol=0, atol=40 * float(np.finfo(dtype).eps))
