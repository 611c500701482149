"""One drawn case of each CUDA kernel, run by a program and compared with NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


def draw_scores(rng: Rng, shape: tuple[int, int], dtype: str) -> np.ndarray:
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
    """The k best of each row, with and without a floor, and not a slot beyond."""
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(1, launch.longest))
    k = [1, columns, -(-columns // 2), int(rng.integers(1, columns + 1))][rng.integers(4)]
    bits = draw_scores(rng, (rows, columns), dtype)
    scores = from_bits(bits, dtype)
    floors: Any = 0
    if rng.random() < 0.5:
        floors = bits[:, rng.integers(columns)].copy()
        floors[np.isnan(from_bits(floors, dtype))] = to_bits(np.asarray([np.inf]), dtype)[0]
        bar = from_bits(floors, dtype)[:, None]
        expected = portable.select_above(scores, k, bar[:, 0])
    else:
        expected = portable.select(scores, k)
    kernel = cuda.instance("select", dtype)
    room = np.full((rows, k), 7, bits.dtype), np.full((rows, k), -7, np.int32)
    counts = np.full(rows, -7, np.int32)
    *_, values, indices, counts = launch.start(
        program, kernel, bits, floors, rows, columns, k, *room, counts
    )
    np.testing.assert_array_equal(counts, expected.counts)
    np.testing.assert_array_equal(indices, expected.indices)
    taken = np.take_along_axis(bits, np.where(indices < 0, 0, indices), 1)
    free = to_bits(np.asarray(-np.inf), dtype)
    np.testing.assert_array_equal(values, np.where(indices < 0, free, taken))


@dataclass(frozen=True)
class Sparse:
    """A drawn matrix (rows, columns) of k entries a row at most; unused weights are NaN."""

    weights: np.ndarray
    indices: np.ndarray
    counts: np.ndarray
    columns: int

    @property
    def dense(self) -> np.ndarray:
        """The matrix itself, in float64."""
        dense = np.zeros((len(self.indices), self.columns))
        rows, slots = np.nonzero(self.indices >= 0)
        dense[rows, self.indices[rows, slots]] = self.weights[rows, slots]
        return dense


def draw_sparse(rng: Rng, launch: Launch, dtype: str) -> Sparse:
    """Weights are small whole numbers, so that sums are exact in any order."""
    rows, columns = int(rng.integers(1, 9)), int(rng.integers(1, 40))
    k = int(rng.integers(1, columns + 1))
    counts = rng.integers(0, k + 1, rows).astype(np.int32)
    if rng.random() < 0.3:
        counts[:] = k
    indices = np.full((rows, k), -1, np.int32)
    for row, count in zip(indices, counts, strict=True):
        row[:count] = np.sort(rng.choice(columns, count, replace=False))
    weights = rng.integers(-4, 5, indices.shape).astype(dtype)
    weights[indices < 0] = np.nan
    return Sparse(weights, indices, counts, columns)


def draw_whole(rng: Rng, shape: tuple[int, int], dtype: str = "float64") -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(dtype)


def laid_out(rng: Rng, matrix: np.ndarray) -> tuple[np.ndarray, int, int]:
    """A matrix by rows, by columns or with gaps: its memory, and both strides in elements."""
    rows, columns = matrix.shape
    kind = rng.integers(3)
    if kind == 0:
        return np.ascontiguousarray(matrix), columns, 1
    if kind == 1:
        return np.ascontiguousarray(matrix.T), 1, rows
    return np.repeat(matrix, 2, axis=1), 2 * columns, 2


def as_laid_out(memory: np.ndarray, like: np.ndarray, *strides: int) -> np.ndarray:
    """The matrix in memory that `laid_out` made of one like this."""
    size = memory.itemsize
    return np.lib.stride_tricks.as_strided(memory, like.shape, [size * step for step in strides])


def gather_matmul(
    program: Program, rng: Rng, launch: Launch, dtype: str = "float32", stored: str = "float32"
) -> None:
    """The sum over used slots, whatever lies in the others and in rows that nobody uses."""
    sparse, width = draw_sparse(rng, launch, dtype), int(rng.integers(1, 70))
    values = draw_whole(rng, (sparse.columns, width))
    expected = sparse.dense @ values
    values[np.setdiff1d(np.arange(sparse.columns), sparse.indices)] = np.nan
    memory, *strides = laid_out(rng, to_bits(values, stored))
    rows, k = sparse.indices.shape
    kernel = cuda.instance("gather_matmul", dtype, stored)
    given = (sparse.weights, sparse.indices, sparse.counts, memory, *strides, rows, k, width)
    *_, out = launch.start(program, kernel, *given, np.full((rows, width), np.nan, dtype))
    np.testing.assert_array_equal(out, expected)


def sampled_matmul(
    program: Program, rng: Rng, launch: Launch, dtype: str = "float32", stored: str = "float32"
) -> None:
    """Dot products at the used slots, 0 in the others, whatever lies where nobody looks."""
    sparse, width = draw_sparse(rng, launch, dtype), int(rng.integers(1, 70))
    left = draw_whole(rng, (len(sparse.indices), width), dtype)
    values = draw_whole(rng, (sparse.columns, width))
    used = sparse.indices >= 0
    dots = np.take_along_axis(left @ values.T, np.where(used, sparse.indices, 0), 1)
    left[~used.any(axis=1)] = np.nan
    values[np.setdiff1d(np.arange(sparse.columns), sparse.indices)] = np.nan
    memory, *strides = laid_out(rng, to_bits(values, stored))
    kernel = cuda.instance("sampled_matmul", dtype, stored)
    given = (left, memory, *strides, sparse.indices, sparse.counts, *used.shape, width)
    *_, out = launch.start(program, kernel, *given, np.full(used.shape, np.nan, dtype))
    np.testing.assert_array_equal(out, np.where(used, dots, 0))


def scatter_matmul(
    program: Program,
    rng: Rng,
    launch: Launch,
    dtype: str = "float32",
    kernel: str = "scatter_matmul",
) -> None:
    """What belongs to some of the columns is added to what is there."""
    sparse, width = draw_sparse(rng, launch, dtype), int(rng.integers(1, 20))
    right = draw_whole(rng, (len(sparse.indices), width), dtype)
    first = int(rng.integers(0, sparse.columns))
    size = int(rng.integers(1, sparse.columns - first + 1))
    start = draw_whole(rng, (size, width), dtype)
    expected = start + (sparse.dense.T @ right)[first : first + size]
    right[sparse.counts == 0] = np.nan
    memory, *strides = laid_out(rng, start)
    order = [np.argsort(sparse.indices, axis=None, kind="stable")]
    if kernel == "scatter_matmul_atomic":
        order = []
    pairs, k = sparse.indices.size, sparse.indices.shape[1]
    *_, out = launch.start(
        program,
        cuda.instance(kernel, dtype),
        sparse.weights,
        sparse.indices,
        *order,
        right,
        *(pairs, k, width, first, size),
        memory,
        *strides,
    )
    np.testing.assert_array_equal(as_laid_out(out, start, *strides), expected)


def take_slots(program: Program, rng: Rng, launch: Launch, size: int = 4) -> None:
    """Elements of any kind at the indices, 0 where there is none."""
    sparse = draw_sparse(rng, launch, "float32")
    rows, k = sparse.indices.shape
    matrix = rng.integers(0, 2**16, (rows, sparse.columns)).astype(f"u{size}")
    memory, *strides = laid_out(rng, matrix)
    kernel = cuda.instance_for_bits("take_slots", size)
    room = np.full((rows, k), 7, matrix.dtype)
    *_, out = launch.start(program, kernel, memory, *strides, sparse.indices, rows, k, room)
    used = sparse.indices >= 0
    taken = np.take_along_axis(matrix, np.where(used, sparse.indices, 0), 1)
    np.testing.assert_array_equal(out, np.where(used, taken, 0))


def add_slots(program: Program, rng: Rng, launch: Launch, dtype: str = "float32") -> None:
    """The matrix itself is added to what is there."""
    sparse = draw_sparse(rng, launch, dtype)
    start = draw_whole(rng, sparse.dense.shape, dtype)
    memory, *strides = laid_out(rng, start)
    kernel = cuda.instance("add_slots", dtype)
    given = (sparse.weights, sparse.indices, sparse.counts, *sparse.indices.shape)
    *_, out = launch.start(program, kernel, *given, memory, *strides)
    np.testing.assert_array_equal(as_laid_out(out, start, *strides), start + sparse.dense)


def masked_matmul(program: Program, rng: Rng, launch: Launch, dtype: str = "float32") -> None:
    """Summed anew over allowed pairs where values are not finite; else left as it is."""
    rows, columns, width = map(int, rng.integers(1, 20, 3))
    allowed = rng.random((rows, columns)) < 0.5
    weights = np.where(allowed, draw_whole(rng, (rows, columns)), 0).astype(dtype)
    values = draw_whole(rng, (columns, width), dtype)
    finite = np.asarray([rng.random() < 0.3])
    values[rng.integers(columns)] = rng.choice([np.nan, np.inf])
    start = draw_whole(rng, (rows, width), dtype)
    with np.errstate(invalid="ignore"):  # 0 times inf
        pairs = np.where(allowed[..., None], weights[..., None] * values, 0)
    operands = [laid_out(rng, matrix) for matrix in (weights, allowed, values)]
    kernel = cuda.instance("masked_matmul", dtype)
    given = (finite, *operands[0], *operands[1], *operands[2], rows, columns, width)
    *_, out = launch.start(program, kernel, *given, start)
    np.testing.assert_array_equal(out, start if finite else pairs.sum(axis=1))


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
