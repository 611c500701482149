"""
The primitives on CuPy: our own CUDA kernels, and cuBLAS. Definitions: `topk_np.kernels.portable`.

One launch serves all heads of a stack; matrices that heads share are read where they lie. Nothing
here waits for the device or copies from it. The kernels are in `topk_np.kernels.cuda`; they are
compiled when the first is needed, once for each kind of device, and CuPy keeps them on disk.
"""

from __future__ import annotations

import math
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

import cupy
import numpy as np

from topk_np._namespace import Array, dtype_name
from topk_np.kernels import Selection, cuda, portable
from topk_np.kernels.cupy_blas import multiply, strides

THREADS = False
MAY_WAIT = False
WHOLE_BUDGET = True
DOUBLE = True

BLOCK = 256  # threads of a block where each thread or warp has an element of its own
WAVES = 4  # blocks that a multiprocessor gets, times what it holds at once, at most
ROW_BLOCK = 512  # most threads of a block where each has a row: MOST_WARPS of them
ELEMENTS_PER_THREAD = 4  # of such a row, while that is fewer threads


def product(query: Array, key: Array, scale: float, scratch: dict[str, Array], name: str) -> Array:
    """(G, C, n): ``scale * query keyᵀ``, in the memory that `scratch` holds under `name`."""
    shape = (*query.shape[:2], key.shape[1])
    size, dtype = math.prod(shape), query.dtype
    if name not in scratch or scratch[name].size < size or scratch[name].dtype != dtype:
        scratch.pop(name, None)  # before the new one is made
        scratch[name] = cupy.empty(size, dtype)
    scores = scratch[name][:size].reshape(shape)
    return multiply(query, key.swapaxes(1, 2), scores, scale)


def hide(scores: Array, allowed: Array) -> Array:
    """`scores` (G, C, n), set to -inf in place where `allowed`, which broadcasts, is False."""
    return _HIDE(allowed, -cupy.inf, scores)


def hide_outside(scores: Array, first: Any, last: Any) -> Array:
    """`scores`, -inf in place where row i has not ``first + i <= column <= last + i``."""
    scores, edges = cupy.ascontiguousarray(scores), 0
    if not isinstance(first, int):
        edges = cupy.asarray(np.stack((first, last)).astype(np.int64))
        first = last = 0
    kernel = cuda.instance("hide_outside", dtype_name(scores))
    heads, rows, columns = scores.shape
    _launch_rows(kernel, heads * rows, columns, scores, *scores.shape, edges, first, last)
    return scores


def tanh(scores: Array) -> Array:
    """The hyperbolic tangent of `scores`, in place."""
    return cupy.tanh(scores, out=scores)


def toeplitz(diagonals: Array, rows: int) -> Array:
    """(G, rows, n): a view of ``diagonals`` (G, rows - 1 + n), from the lower left one on."""
    columns = diagonals.shape[1] - rows + 1
    head, step = diagonals.strides
    return cupy.lib.stride_tricks.as_strided(
        diagonals[:, max(rows - 1, 0) :], (len(diagonals), rows, columns), (head, -step, step)
    )


def select(scores: Array, k: int) -> Selection:
    """The k largest of each row: lower index first among equals, NaN above all, -inf never."""
    return _select(scores, min(k, scores.shape[-1]))


def _select(
    scores: Array,
    slots: int,
    start: int = 0,
    best: tuple[Array, ...] = (0, 0),
    kept: int = 0,
    floors: Any = 0,
    places: Any = 0,
) -> Selection:
    """The best of what was kept before and of scores that start at the column `start`."""
    *lead, columns = scores.shape
    found = Selection(
        cupy.empty((*lead, slots), scores.dtype), cupy.empty((*lead, slots), cupy.int32)
    )
    if found.indices.size:
        kernel, rows = cuda.instance("select", dtype_name(scores)), math.prod(lead)
        given = (cupy.ascontiguousarray(scores), rows, columns, start, *best, kept, floors)
        _launch_rows(kernel, rows, kept + columns, *given, slots, *found, places)
    return found


class RunningTopK(portable.RunningTopK):
    """
    The k best of each row of scores that come in blocks of columns, from left to right.

    One kernel selects from the best so far and a block together. Once k are known, it counts only
    what ranks above a floor, which is near the least of them and rises from block to block.
    """

    def __init__(self, k: int, columns: int) -> None:
        """Begin with rows that have `columns` scores in all."""
        super().__init__(k, columns)
        self._floors: Array = None  # (G, C), ranks: see select.cu

    def add(self, scores: Array, start: int, *others: Array) -> None:
        """Take in a block (G, C, n) from column `start` on; `others` are kept where it is."""
        *lead, columns = scores.shape
        values, indices, *before = self._best or [0] * (2 + len(others))
        kept = self._best[0].shape[-1] if self._best else 0
        slots = min(self.k, kept + columns)
        if self._floors is None:
            self._floors = cupy.empty(lead, f"u{scores.itemsize}")
        places = cupy.empty((*lead, slots), cupy.int32) if others else 0
        found = _select(scores, slots, start, (values, indices), kept, self._floors, places)
        taken = [_take(other, places, was, kept) for other, was in zip(others, before, strict=True)]
        self._best = [*found, *taken]


class _Pattern:
    """The slots of row-sparse matrices (G, C, keys)."""

    def __init__(self, indices: Array, keys: int) -> None:
        self.indices = cupy.ascontiguousarray(indices, cupy.int32)
        self.keys = keys

    @cached_property
    def order(self) -> Array:
        """The slots, numbered through all heads, sorted by head and by index: sorted once."""
        heads, numbers = len(self.indices), self.indices
        if heads > 1:
            dtype = cupy.int32 if heads * (self.keys + 1) < 2**31 else cupy.int64
            numbers = _NUMBER(
                numbers, numbers.size // heads, self.keys + 1, cupy.empty(numbers.shape, dtype)
            )
        return cupy.argsort(numbers.reshape(-1))  # stable, as all of CuPy's sorts


def pattern(indices: Array, keys: int) -> Any:
    """The places of entries in row-sparse matrices (G, C, keys), as the products below take it."""
    return _Pattern(indices, keys)


def take_slots(matrix: Array, indices: Array) -> Array:
    """(G, C, K): ``matrix[g, i, indices[g, i, j]]``, 0 in unused slots."""
    if matrix.shape[2] == 0:
        return cupy.zeros(indices.shape, matrix.dtype)
    return _take(matrix, cupy.ascontiguousarray(indices))


def _take(matrix: Array, places: Array, before: Any = 0, kept: int = 0) -> Array:
    """The entries at `places` of the matrices that `before` (G, C, kept) and `matrix` make."""
    out = cupy.empty(places.shape, matrix.dtype)
    matrix = cupy.broadcast_to(matrix, (*places.shape[:2], matrix.shape[2]))
    kernel = cuda.instance_for_bits("take_slots", matrix.itemsize)
    _launch(kernel, out.size, matrix, *strides(matrix), places, *out.shape, before, kept, out)
    return out


def gather_matmul(weights: Array, pattern: Any, values: Array) -> Array:
    """(G, C, V): the row-sparse matrix times values (G, N, V): the sum over each row's slots."""
    heads, rows, k = pattern.indices.shape
    out = cupy.empty((heads, rows, values.shape[2]), weights.dtype)
    kernel = cuda.instance("gather_matmul", dtype_name(weights), dtype_name(values))
    given = (cupy.ascontiguousarray(weights), pattern.indices, values, *strides(values))
    _launch(kernel, out.size, *given, heads, rows, k, values.shape[2], out)
    return out


def sampled_matmul(rows: Array, values: Array, pattern: Any) -> Array:
    """(G, C, K): the entries of ``rows valuesᵀ`` (G, C, V) x (G, V, N) in used slots, else 0."""
    out = cupy.empty(pattern.indices.shape, rows.dtype)
    kernel = cuda.instance("sampled_matmul", dtype_name(rows), dtype_name(values))
    given = (rows, *strides(rows), values, *strides(values), pattern.indices)
    threads = out.size * _device().warp  # a warp for each element
    _launch(kernel, threads, *given, *out.shape, rows.shape[2], out)
    return out


def scatter_matmul(
    weights: Array, pattern: Any, rows: Array, out: Array, first: int = 0, fresh: bool = False
) -> Array:
    """
    `out` (G, n, V), plus in place the transposed row-sparse matrix times rows (G, C, V).

    `out` stands for the rows from `first` on of the product: other indices are left out, so that
    several calls can share the work. If `fresh`, what is in `out` is not read but taken for 0. What
    belongs to a row is sorted together and summed in order, so that the result is the same every
    time.
    """
    _, size, width = out.shape
    given = (cupy.ascontiguousarray(weights), pattern.indices, pattern.order)
    sizes = (*pattern.indices.shape, width, first, size, int(fresh))
    kernel = cuda.instance("scatter_matmul", dtype_name(weights))
    _launch(kernel, out.size, *given, rows, *strides(rows), *sizes, out, *strides(out))
    return out


def _scatter_atomically(
    weights: Array, pattern: Any, rows: Array, out: Array, first: int = 0, fresh: bool = False
) -> Array:
    """`scatter_matmul` without sorting, by atomic additions: rounding varies from run to run."""
    if fresh:
        out[...] = 0
    _, size, width = out.shape
    given = (cupy.ascontiguousarray(weights), pattern.indices, rows, *strides(rows))
    sizes = (*pattern.indices.shape, width, first, size)
    kernel = cuda.instance("scatter_matmul_atomic", dtype_name(weights))
    _launch(kernel, weights.size * width, *given, *sizes, out, *strides(out))
    return out


def add_slots(weights: Array, pattern: Any, out: Array) -> Array:
    """`out` (G, C, N), to which the row-sparse matrix itself is added in place."""
    kernel = cuda.instance("add_slots", dtype_name(weights))
    given = (cupy.ascontiguousarray(weights), pattern.indices, *weights.shape)
    _launch(kernel, weights.size, *given, out, *strides(out))
    return out


def masked_matmul(weights: Array, scores: Array, values: Array) -> Array:
    """
    ``weights values`` (G, C, n) x (G, n, V) over the pairs alone whose score is above -inf.

    The plain product has what is not finite wherever a NaN or inf took part, if only times 0. A
    kernel sums such elements anew, pair by pair: it is always started, as only the device knows
    whether there are any.
    """
    out = cupy.empty((*weights.shape[:2], values.shape[2]), weights.dtype)
    multiply(weights, values, out)
    given = [x for matrix in (weights, scores, values) for x in (matrix, *strides(matrix))]
    kernel = cuda.instance("masked_matmul", dtype_name(weights))
    _launch(kernel, out.size, *given, *weights.shape, values.shape[2], out)
    return out


def zero_hidden(matrix: Array, scores: Array) -> Array:
    """`matrix` (G, C, n), but 0 where the score is -inf."""
    return _ZERO_HIDDEN(matrix, scores, -cupy.inf)


def softmax(scores: Array) -> Array:
    """Row-wise softmax; a row without allowed scores is all 0."""
    return _each_row("softmax", scores)


def softmax_vjp(weights: Array, dweights: Array) -> Array:
    """``weights * (dweights - sum(weights * dweights))``, row by row."""
    return _each_row("softmax_vjp", weights, dweights)


def _each_row(name: str, *operands: Array) -> Array:
    operands = tuple(map(cupy.ascontiguousarray, operands))
    out = cupy.empty_like(operands[0])
    *lead, columns = out.shape
    rows, kernel = math.prod(lead), cuda.instance(name, dtype_name(out))
    _launch_rows(kernel, rows, columns, *operands, rows, columns, out)
    return out


def relu(scores: Array) -> Array:
    """`scores` where they are above 0, or NaN; a masked score is neither."""
    return _RELU(scores, scores)


def relu_vjp(scores: Array, dweights: Array) -> Array:
    """`dweights` where the score is above 0, or NaN."""
    return _RELU(scores, dweights)


def erf(x: Array) -> Array:
    """The error function."""
    return _ERF(x)


def threefry(key: tuple[Any, Any], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Threefry-2x32-20: two int32 of random bits for each key and counter, which broadcast."""
    return _THREEFRY(*key, *counter)  # type: ignore[no-any-return]


_HIDE = cupy.ElementwiseKernel(
    "bool allowed, T hidden", "T score", "if (!allowed) score = hidden", "topk_np_hide"
)
_ZERO_HIDDEN = cupy.ElementwiseKernel(
    "T element, T score, T hidden",
    "T out",
    "out = score == hidden ? T(0) : element",
    "topk_np_zero_hidden",
)
_RELU = cupy.ElementwiseKernel(
    "T score, T element", "T out", "out = score <= 0 ? T(0) : element", "topk_np_relu"
)
_ERF = cupy.ElementwiseKernel("T x", "T out", "out = erf(x)", "topk_np_erf")
_NUMBER = cupy.ElementwiseKernel(
    "int32 index, int64 pairs, int64 range",
    "T number",
    "number = i / pairs * range + index + 1",
    "topk_np_number",
)
_THREEFRY = cupy.ElementwiseKernel(
    "int32 key0, int32 key1, int32 counter0, int32 counter1",
    "int32 bits0, int32 bits1",
    """
    const int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
    const unsigned a = key0, b = key1, keys[3] = {a, b, a ^ b ^ 0x1BD11BDAu};
    unsigned x = counter0 + a, y = counter1 + b;
    for (unsigned block = 0; block < 5; block++) {
      for (int rotation : rotations[block % 2]) {
        x += y;
        y = x ^ (y << rotation | y >> (32 - rotation));
      }
      x += keys[(block + 1) % 3];
      y += keys[(block + 2) % 3] + block + 1;
    }
    bits0 = x;
    bits1 = y;
    """,
    "topk_np_threefry",
)


class _Device(NamedTuple):
    """The limits of a device, which launches are shaped by."""

    number: int
    warp: int
    """Threads of a warp."""
    block: int
    """Most threads of a block."""
    resident: int
    """Threads that all multiprocessors together hold at once."""


def _device() -> _Device:
    return _device_of(cupy.cuda.runtime.getDevice())


@cache
def _device_of(number: int) -> _Device:
    has = cupy.cuda.Device(number).attributes
    resident = has["MultiProcessorCount"] * has["MaxThreadsPerMultiProcessor"]
    return _Device(number, has["WarpSize"], has["MaxThreadsPerBlock"], resident)


@cache
def _module(device: int) -> Any:
    return cupy.RawModule(
        code=cuda.source(), options=cuda.OPTIONS, name_expressions=cuda.instances()
    )


@cache
def _kernel(device: int, name: str) -> Any:
    return _module(device).get_function(name)


def _launch(kernel: str, threads: int, *arguments: Any) -> None:
    """Start a kernel that gives each element a thread, or several."""
    if threads:
        device = _device()
        block = min(BLOCK, device.block)
        _start(device, kernel, -(-threads // block), block, arguments)


def _launch_rows(kernel: str, rows: int, columns: int, *arguments: Any) -> None:
    """Start a kernel that gives each row a block."""
    if rows and columns:
        device = _device()
        warps = -(-columns // (device.warp * ELEMENTS_PER_THREAD))
        block = min(warps * device.warp, ROW_BLOCK, device.block)
        _start(device, kernel, rows, block, arguments)


def _start(
    device: _Device, kernel: str, blocks: int, block: int, arguments: tuple[Any, ...]
) -> None:
    # Kernels stride over their work: more blocks than keep the device busy are not needed.
    most = max(1, WAVES * device.resident // block)
    _kernel(device.number, kernel)((min(blocks, most),), (block,), arguments)


atomic = SimpleNamespace(
    **{name: value for name, value in globals().items() if not name.startswith("_")}
    | {"scatter_matmul": _scatter_atomically}
)
"""This engine, except that it adds up gradients by atomic additions."""
