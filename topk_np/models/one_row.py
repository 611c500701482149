"""
Products of a single row, as in decoding, which are bound by memory: each weight is read once.

Threads read parts of a matrix at the same time. The parts depend on its shape alone, and are added
up in order, so that the number of threads does not change the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor

from topk_np._namespace import Array, array_namespace, cast, compute_dtype, is_numpy
from topk_np.activations import ACTIVATIONS
from topk_np.layers.linear import affine
from topk_np.models.model import Params
from topk_np.schedule.plan import slices
from topk_np.schedule.threads import WorkerTeam, check_workers

MOST_PARTS = 2
LEAST_PART = 2**17  # numbers; sharing fewer among threads costs more than it saves


def one_row_linear(x: Array, weight: Array, workers: int | Executor | None = None, /) -> Array:
    """``x weightᵀ`` of one row `x` (..., 1, D) and `weight` (T, D): (..., 1, T)."""
    parts = _parts(weight)
    with WorkerTeam(check_workers(workers)) as crew:
        pieces = crew.map(lambda rows: affine(x, weight[rows, :], None), parts)
    return pieces[0] if len(pieces) == 1 else array_namespace(x).concat(pieces, axis=-1)


def one_row_ffn(
    x: Array, params: Params, activation: str, workers: int | Executor | None = None, /
) -> Array:
    """A feed-forward layer over all units of one row (..., 1, D), without a backward pass."""
    xp = array_namespace(x)
    value, row = ACTIVATIONS[activation].value, cast(xp, x, compute_dtype(xp, x))

    def part(units: slice) -> Array:
        own = {name: array[units, ...] for name, array in params.items() if name != "value_bias"}
        h = affine(row, own["keys"], own.get("key_bias"))
        h = value(affine(row, own["gate"], own.get("gate_bias"))) * h if "gate" in own else value(h)
        return affine(h, xp.matrix_transpose(own["values"]), None)

    with WorkerTeam(check_workers(workers)) as crew:
        out, *others = crew.map(part, _parts(params["keys"]))
    for piece in others:
        out += piece
    if "value_bias" in params:
        out += cast(xp, params["value_bias"], row.dtype)
    return cast(xp, out, x.dtype)


def _parts(matrix: Array) -> Iterator[slice]:
    """The parts of the rows of a matrix, each read by one thread."""
    rows, width = matrix.shape
    most = MOST_PARTS if is_numpy(array_namespace(matrix)) else 1
    parts = max(1, min(most, rows * width // LEAST_PART))
    return slices(rows, -(-rows // parts))
