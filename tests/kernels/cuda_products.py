"""One drawn case of each CUDA kernel that multiplies, compared with NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.kernels.cuda_cases import Launch, Rng, to_bits
from tests.kernels.cuda_program import Program
from topk_np.kernels import cuda


@dataclass(frozen=True)
class Sparse:
    """Drawn matrices (heads, rows, keys) of k entries a row at most; unused weights are NaN."""

    weights: np.ndarray
    indices: np.ndarray
    keys: int

    @property
    def used(self) -> np.ndarray:
        return np.asarray(self.indices >= 0)

    @property
    def dense(self) -> np.ndarray:
        """The matrices themselves, in float64."""
        dense = np.zeros((*self.indices.shape[:2], self.keys))
        heads, rows, slots = np.nonzero(self.used)
        places = self.indices[heads, rows, slots]
        dense[heads, rows, places] = self.weights[heads, rows, slots]
        return dense

    def entries(self, matrices: np.ndarray) -> np.ndarray:
        """What matrices (heads, rows, keys) hold in the slots, 0 in unused ones."""
        taken = np.take_along_axis(matrices, np.where(self.used, self.indices, 0), 2)
        return np.where(self.used, taken, 0)

    def unused_keys(self, shared: bool) -> tuple[np.ndarray, ...]:
        """The heads and keys that no index names, of any head where these are the same memory."""
        named = np.zeros((len(self.indices), self.keys), bool)
        heads, rows, slots = np.nonzero(self.used)
        named[heads, self.indices[heads, rows, slots]] = True
        if shared:
            named[:] = named.any(axis=0)
        return np.nonzero(~named)


def draw_sparse(rng: Rng, launch: Launch, dtype: str) -> Sparse:
    """Weights are small whole numbers, so that sums are exact in any order."""
    heads, rows, keys = int(rng.integers(1, 4)), int(rng.integers(1, 7)), int(rng.integers(1, 40))
    k = int(rng.integers(1, keys + 1))
    counts = rng.integers(0, k + 1, (heads, rows))
    if rng.random() < 0.3:
        counts[:] = k
    indices = np.full((heads, rows, k), -1, np.int32)
    for place, count in np.ndenumerate(counts):
        indices[place][:count] = np.sort(rng.choice(keys, count, replace=False))
    weights = rng.integers(-4, 5, indices.shape).astype(dtype)
    weights[indices < 0] = np.nan
    return Sparse(weights, indices, keys)


def draw_whole(rng: Rng, shape: tuple[int, ...], dtype: str = "float64") -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(dtype)


def draw_stack(
    rng: Rng, shape: tuple[int, int, int], dtype: str = "float64"
) -> tuple[np.ndarray, bool]:
    """Small whole numbers, and whether they are the same for all heads."""
    shared = bool(rng.random() < 0.3)
    stack = draw_whole(rng, shape, dtype)
    if shared:
        stack[:] = stack[0]
    return stack, shared


Laid = tuple[np.ndarray, int, int, int]  # memory, and the strides of heads, rows and columns


def laid_out(rng: Rng, stack: np.ndarray, shared: bool = False) -> Laid:
    """A stack by rows, by columns, with gaps, or heads innermost but one; `shared`, of one head."""
    heads, rows, columns = stack.shape
    if shared:
        memory, _, *strides = laid_out(rng, stack[:1])
        return memory, 0, strides[0], strides[1]
    kind = rng.integers(4)
    if kind == 0:
        return np.ascontiguousarray(stack), rows * columns, columns, 1
    if kind == 1:
        return np.ascontiguousarray(stack.mT), rows * columns, 1, rows
    if kind == 2:
        return np.repeat(stack, 2, axis=2), 2 * rows * columns, 2 * columns, 2
    return np.ascontiguousarray(stack.swapaxes(0, 1)), columns, heads * columns, 1


def as_laid_out(memory: np.ndarray, like: np.ndarray, *strides: int) -> np.ndarray:
    """The stack in memory that `laid_out` made of one like this."""
    size = memory.itemsize
    return np.lib.stride_tricks.as_strided(memory, like.shape, [size * step for step in strides])


def gather_matmul(
    program: Program, rng: Rng, launch: Launch, dtype: str = "float32", stored: str = "float32"
) -> None:
    """The sum over used slots, whatever lies in the others and in rows that nobody uses."""
    sparse, width = draw_sparse(rng, launch, dtype), int(rng.integers(1, 70))
    values, shared = draw_stack(rng, (len(sparse.indices), sparse.keys, width))
    expected = sparse.dense @ values
    values[sparse.unused_keys(shared)] = np.nan
    laid = laid_out(rng, to_bits(values, stored), shared)
    kernel = cuda.instance("gather_matmul", dtype, stored)
    given = (sparse.weights, sparse.indices, *laid, *sparse.indices.shape, width)
    *_, out = launch.start(program, kernel, *given, np.full(expected.shape, np.nan, dtype))
    np.testing.assert_array_equal(out, expected)


def sampled_matmul(
    program: Program, rng: Rng, launch: Launch, dtype: str = "float32", stored: str = "float32"
) -> None:
    """Dot products at the used slots, 0 in the others, whatever lies where nobody looks."""
    sparse, width = draw_sparse(rng, launch, dtype), int(rng.integers(1, 70))
    heads, rows, _ = sparse.indices.shape
    left, same = draw_stack(rng, (heads, rows, width), dtype)
    values, shared = draw_stack(rng, (heads, sparse.keys, width))
    expected = sparse.entries(left @ values.mT)
    if not same:
        left[~sparse.used.any(axis=2)] = np.nan
    values[sparse.unused_keys(shared)] = np.nan
    operands = laid_out(rng, left, same), laid_out(rng, to_bits(values, stored), shared)
    kernel = cuda.instance("sampled_matmul", dtype, stored)
    given = (*operands[0], *operands[1], sparse.indices, *sparse.indices.shape, width)
    *_, out = launch.start(program, kernel, *given, np.full(expected.shape, np.nan, dtype))
    np.testing.assert_array_equal(out, expected)


def sorted_pairs(indices: np.ndarray) -> np.ndarray:
    """The slots of all heads, sorted by head and index."""
    heads = np.arange(len(indices))[:, None, None] + np.zeros_like(indices)
    return np.lexsort((indices.ravel(), heads.ravel()))


def scatter_matmul(
    program: Program,
    rng: Rng,
    launch: Launch,
    dtype: str = "float32",
    kernel: str = "scatter_matmul",
) -> None:
    """What belongs to some of the keys is added to what is there, or replaces it unread."""
    sparse, width = draw_sparse(rng, launch, dtype), int(rng.integers(1, 20))
    heads, rows, _ = sparse.indices.shape
    right, same = draw_stack(rng, (heads, rows, width), dtype)
    first = int(rng.integers(0, sparse.keys))
    size = int(rng.integers(1, sparse.keys - first + 1))
    expected = (sparse.dense.mT @ right)[:, first : first + size]
    start = draw_whole(rng, expected.shape, dtype)
    order, fresh = [sorted_pairs(sparse.indices)], [int(rng.random() < 0.3)]
    if kernel == "scatter_matmul_atomic":
        order, fresh = [], []
    if any(fresh):
        start[:] = np.nan
    else:
        expected = expected + start
    if not same:
        right[~sparse.used.any(axis=2)] = np.nan
    memory, *strides = laid_out(rng, start)
    *_, out = launch.start(
        program,
        cuda.instance(kernel, dtype),
        *(sparse.weights, sparse.indices, *order),
        *laid_out(rng, right, same),
        *(*sparse.indices.shape, width, first, size, *fresh),
        memory,
        *strides,
    )
    np.testing.assert_array_equal(as_laid_out(out, start, *strides), expected)


def take_slots(program: Program, rng: Rng, launch: Launch, size: int = 4) -> None:
    """Elements of any kind at the places, 0 where there is none."""
    sparse = draw_sparse(rng, launch, "float32")
    kept = int(rng.integers(0, sparse.keys + 1)) if rng.random() < 0.5 else 0
    heads, rows, k = sparse.indices.shape
    matrix = rng.integers(0, 2 ** (8 * min(size, 2)), (heads, rows, sparse.keys)).astype(f"u{size}")
    before = np.ascontiguousarray(matrix[:, :, :kept]) if kept else 0
    laid = laid_out(rng, matrix[:, :, kept:])
    kernel = cuda.instance_for_bits("take_slots", size)
    room = np.full((heads, rows, k), 7, matrix.dtype)
    given = (*laid, sparse.indices, heads, rows, k, before, kept)
    *_, out = launch.start(program, kernel, *given, room)
    np.testing.assert_array_equal(out, sparse.entries(matrix))


def add_slots(program: Program, rng: Rng, launch: Launch, dtype: str = "float32") -> None:
    """The matrices themselves are added to what is there."""
    sparse = draw_sparse(rng, launch, dtype)
    start = draw_whole(rng, sparse.dense.shape, dtype)
    memory, *strides = laid_out(rng, start)
    kernel = cuda.instance("add_slots", dtype)
    given = (sparse.weights, sparse.indices, *sparse.indices.shape)
    *_, out = launch.start(program, kernel, *given, memory, *strides)
    np.testing.assert_array_equal(as_laid_out(out, start, *strides), start + sparse.dense)


def masked_matmul(program: Program, rng: Rng, launch: Launch, dtype: str = "float32") -> None:
    """What is not finite is summed anew over pairs with a score; the rest is left as it is."""
    heads, rows, columns, width = int(rng.integers(1, 4)), *map(int, rng.integers(1, 20, 3))
    scores = np.where(rng.random((heads, rows, columns)) < 0.5, -np.inf, 1).astype(dtype)
    scores[rng.random(scores.shape) < 0.05] = np.nan
    allowed = scores != -np.inf
    weights = np.where(allowed, draw_whole(rng, scores.shape), 0).astype(dtype)
    values, shared = draw_stack(rng, (heads, columns, width), dtype)
    values[:, rng.integers(columns)] = rng.choice([np.nan, np.inf])
    start = draw_whole(rng, (heads, rows, width), dtype)
    anew = rng.random(start.shape) < 0.7
    start[anew] = rng.choice([np.nan, np.inf, -np.inf], np.count_nonzero(anew))
    with np.errstate(invalid="ignore"):  # 0 times inf
        pairs = np.where(allowed[..., None], weights[..., None] * values[:, None], 0)
    operands = [laid_out(rng, weights), laid_out(rng, scores), laid_out(rng, values, shared)]
    kernel = cuda.instance("masked_matmul", dtype)
    given = [argument for operand in operands for argument in operand]
    *_, out = launch.start(program, kernel, *given, *scores.shape, width, start)
    np.testing.assert_array_equal(out, np.where(anew, pairs.sum(axis=2), start))
