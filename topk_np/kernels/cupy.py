"""
The primitives on CuPy: our own CUDA kernels, and cuBLAS. Definitions: `topk_np.kernels.portable`.

Nothing here waits for the device or copies from it. The kernels are in `topk_np.kernels.cuda`; they
are compiled when the first is needed, once for each kind of device, and CuPy keeps them on disk.
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import cupy

from topk_np._namespace import Array, dtype_name
from topk_np.kernels import Selection, cuda
from topk_np.kernels.finds import Finds as Finds

BLOCK = 256  # threads of a block where each thread or warp has an element of its own
WAVES = 4  # blocks that a multiprocessor gets, times what it holds at once, at most
ROW_BLOCK = 512  # most threads of a block where each has a row: MOST_WARPS of them
ELEMENTS_PER_THREAD = 4  # of such a row, while that is fewer threads


def matmul(rows: Array, keys: Array, scratch: Array) -> Array:
    """(C, n): ``rows @ keys.T``, written to `scratch`."""
    return cupy.matmul(rows, keys.T, out=scratch)


def hide(scores: Array, allowed: Array) -> Array:
    """`scores` (C, n), set to -inf in place where `allowed` is False."""
    return _hide()(allowed, -cupy.inf, scores)


def hide_outside(scores: Array, first: int, last: int) -> Array:
    """`scores` (C, n), -inf in place where row i is not in ``first + i <= column <= last + i``."""
    return _hide_outside()(scores.shape[1], first, last, -cupy.inf, scores)


def tanh(scores: Array) -> Array:
    """The hyperbolic tangent of `scores`, in place."""
    return cupy.tanh(scores, out=scores)


def select(scores: Array, k: int) -> Selection:
    """The k largest of each row: lower index first among equals, NaN above all, -inf never."""
    return _select(scores, k, 0)


def select_above(scores: Array, k: int, floor: Array) -> Selection:
    """The k largest of each row among what exceeds its `floor` (C,); a NaN always does."""
    return _select(scores, k, cupy.ascontiguousarray(floor))


def _select(scores: Array, k: int, floor: Any) -> Selection:
    rows, columns = scores.shape
    k = min(k, columns)
    found = Selection(
        cupy.empty((rows, k), scores.dtype),
        cupy.empty((rows, k), cupy.int32),
        cupy.zeros(rows, cupy.int32),
    )
    if rows and k:
        kernel = cuda.instance("select", dtype_name(scores))
        given = (cupy.ascontiguousarray(scores), floor, rows, columns, k)
        _launch_rows(kernel, rows, columns, *given, *found)
    return found


def floor_of(scores: Array, k: int) -> Array:
    """(C,): a value that k entries of each row exceed, where so many are above -inf; or -inf."""
    return cupy.full(scores.shape[:1], -cupy.inf, scores.dtype)


def take_slots(matrix: Array, indices: Array) -> Array:
    """(C, K): ``matrix[i, indices[i, j]]``, 0 in unused slots."""
    if matrix.shape[1] == 0:
        return cupy.zeros(indices.shape, matrix.dtype)
    out = cupy.empty(indices.shape, matrix.dtype)
    matrix = cupy.broadcast_to(matrix, (len(out), matrix.shape[1]))  # one row may stand for all
    kernel = cuda.instance_for_bits("take_slots", matrix.itemsize)
    given = (matrix, *_strides(matrix), cupy.ascontiguousarray(indices))
    _launch(kernel, out.size, *given, *out.shape, out)
    return out


def gather_matmul(weights: Array, indices: Array, counts: Array, values: Array) -> Array:
    """(C, V): the sum over the used slots of ``weights[i, j] * values[indices[i, j]]``."""
    (rows, k), width = indices.shape, values.shape[1]
    out = cupy.empty((rows, width), weights.dtype)
    kernel = cuda.instance("gather_matmul", dtype_name(weights), dtype_name(values))
    sparse = map(cupy.ascontiguousarray, (weights, indices, counts))
    _launch(kernel, out.size, *sparse, values, *_strides(values), rows, k, width, out)
    return out


def sampled_matmul(rows: Array, values: Array, indices: Array, counts: Array) -> Array:
    """(C, K): ``rows[i] . values[indices[i, j]]`` in the used slots, 0 in the others."""
    out = cupy.empty(indices.shape, rows.dtype)
    kernel = cuda.instance("sampled_matmul", dtype_name(rows), dtype_name(values))
    rows, indices, counts = map(cupy.ascontiguousarray, (rows, indices, counts))
    threads = out.size * _device().warp  # a warp for each element
    given = (rows, values, *_strides(values), indices, counts)
    _launch(kernel, threads, *given, *indices.shape, rows.shape[1], out)
    return out


def scatter_matmul(
    weights: Array, indices: Array, counts: Array, rows: Array, out: Array, first: int = 0
) -> Array:
    """
    `out`, to which ``weights[i, j] * rows[i]`` is added in its row ``indices[i, j] - first``.

    Indices outside of `out` are left out, so that several calls can share the work. What belongs
    to a row is sorted together and summed in order, so that the result is the same every time.
    """
    order = cupy.argsort(indices.reshape(-1))  # stable, as all of CuPy's sorts
    return _scatter("scatter_matmul", weights, indices, (order,), rows, out, first)


def scatter_matmul_atomic(
    weights: Array, indices: Array, counts: Array, rows: Array, out: Array, first: int = 0
) -> Array:
    """`scatter_matmul` without sorting, by atomic additions: rounding varies from run to run."""
    return _scatter("scatter_matmul_atomic", weights, indices, (), rows, out, first)


def _scatter(
    name: str,
    weights: Array,
    indices: Array,
    order: tuple[Array, ...],
    rows: Array,
    out: Array,
    first: int,
) -> Array:
    (size, width), k = out.shape, indices.shape[1]
    weights, indices, rows = map(cupy.ascontiguousarray, (weights, indices, rows))
    given = (weights, indices, *order, rows, indices.size, k, width, first, size)
    threads = indices.size * width if not order else out.size
    _launch(cuda.instance(name, dtype_name(weights)), threads, *given, out, *_strides(out))
    return out


def add_slots(weights: Array, indices: Array, counts: Array, out: Array) -> Array:
    """`out` (C, N), to which ``weights[i, j]`` is added at ``[i, indices[i, j]]``."""
    kernel = cuda.instance("add_slots", dtype_name(weights))
    sparse = map(cupy.ascontiguousarray, (weights, indices, counts))
    _launch(kernel, indices.size, *sparse, *indices.shape, out, *_strides(out))
    return out


def masked_matmul(weights: Array, allowed: Array, values: Array) -> Array:
    """
    ``weights @ values`` over the allowed pairs alone; `weights` is 0 at the others.

    The kernel that sums pair by pair is always started, but does nothing where all values are
    finite: only the device knows.
    """
    out = cupy.matmul(weights, values)
    finite = cupy.isfinite(cupy.sum(values))
    operands = [(matrix, *_strides(matrix)) for matrix in (weights, allowed, values)]
    kernel = cuda.instance("masked_matmul", dtype_name(weights))
    given = (finite, *chain(*operands), *weights.shape, values.shape[1])
    _launch(kernel, out.size, *given, out)
    return out


def softmax(scores: Array) -> Array:
    """Row-wise softmax; a row without allowed scores is all 0."""
    scores = cupy.ascontiguousarray(scores)
    weights = cupy.empty_like(scores)
    kernel = cuda.instance("softmax", dtype_name(scores))
    _launch_rows(kernel, *scores.shape, scores, *scores.shape, weights)
    return weights


def softmax_vjp(weights: Array, dweights: Array) -> Array:
    """``weights * (dweights - sum(weights * dweights))``, row by row."""
    weights, dweights = map(cupy.ascontiguousarray, (weights, dweights))
    dscores = cupy.empty_like(weights)
    kernel = cuda.instance("softmax_vjp", dtype_name(weights))
    _launch_rows(kernel, *weights.shape, weights, dweights, *weights.shape, dscores)
    return dscores


def threefry(key: tuple[Any, Any], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Threefry-2x32-20: two int32 of random bits for each key and counter, which broadcast."""
    return _threefry()(*key, *counter)  # type: ignore[no-any-return]


def _strides(matrix: Array) -> tuple[int, int]:
    """How many elements lie between rows, and between columns."""
    row, column = matrix.strides
    return row // matrix.itemsize, column // matrix.itemsize


@cache
def _hide() -> Any:
    return cupy.ElementwiseKernel(
        "bool allowed, T hidden", "T score", "if (!allowed) score = hidden", "topk_np_hide"
    )


@cache
def _hide_outside() -> Any:
    return cupy.ElementwiseKernel(
        "int64 columns, int64 first, int64 last, T hidden",
        "T score",
        """
        long long diagonal = i % columns - i / columns;
        if (diagonal < first || diagonal > last) score = hidden;
        """,
        "topk_np_hide_outside",
    )


@cache
def _threefry() -> Any:
    return cupy.ElementwiseKernel(
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
