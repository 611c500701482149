"""
The dense function, forward and backward, in plain products: the oracle.

Each chunk of queries is independent of the others. The backward pass keeps nothing of the forward
pass: it makes the scores of a chunk again (the paper's query chunking, section 2.1).
"""

from __future__ import annotations

from concurrent.futures import Executor

from topk_np._namespace import Array, cast
from topk_np.kernels.portable import masked_matmul
from topk_np.masking import Head
from topk_np.problem import Part, Problem


def forward(problem: Problem, chunk: int, workers: int | Executor) -> Array:
    """The output (..., Q, V)."""
    out = problem.zeros(*problem.out_shape, dtype=problem.query.dtype)

    def work(head: Head, rows: slice) -> None:
        part = problem.part(head, rows)
        scores, activated, linear = _weights(problem, part, head, rows)
        weights = activated if linear is None else activated * linear
        allowed = scores != -problem.xp.inf
        piece = masked_matmul(problem.xp.where(allowed, weights, 0.0), allowed, part.value)
        if part.value_bias is not None:
            piece = piece + part.value_bias
        out[(*head, rows, slice(None))] = cast(problem.xp, piece, out.dtype)

    problem.for_each_chunk(work, chunk, workers)
    return out


def backward(
    problem: Problem, dout: Array, chunk: int, workers: int | Executor
) -> dict[str, Array]:
    """The gradients of the inputs by name."""
    xp = problem.xp

    def add(sums: dict[str, Array], head: Head, rows: slice) -> None:
        part = problem.part(head, rows)
        scores, activated, linear = _weights(problem, part, head, rows)
        allowed = scores != -xp.inf
        weights = xp.where(allowed, activated if linear is None else activated * linear, 0.0)
        dpiece = cast(xp, dout[(*head, rows, slice(None))], problem.dtype)

        # piece = weights value + value_bias
        dweights = xp.where(allowed, dpiece @ part.value.T, 0.0)
        sums["value"] += masked_matmul(weights.T, allowed.T, dpiece)
        if "value_bias" in sums:
            sums["value_bias"] += xp.sum(dpiece, axis=0, keepdims=True)
        # weights = activation(scores) * linear
        dactivated = dweights if linear is None else dweights * linear
        dscores = xp.where(allowed, problem.activation.vjp(scores, activated, dactivated), 0.0)
        if linear is not None:
            dlinear = xp.where(allowed, dweights * activated, 0.0)
            _add_product(sums, "gate", dscores, allowed, part.gate, part.query, rows)
        else:
            dlinear = dscores
        # scores or linear = scale * query keyᵀ + key_bias
        if "key_bias" in sums:
            sums["key_bias"] += xp.sum(dlinear, axis=0, keepdims=True)
        _add_product(sums, "key", dlinear * problem.scale, allowed, part.key, part.query, rows)

    return problem.sum_gradients(add, chunk, workers)


def _weights(
    problem: Problem, part: Part, head: Head, rows: slice
) -> tuple[Array, Array, Array | None]:
    """The scores of a chunk, their activation, and the linear factor of a gated unit."""
    scores = problem.scores(part, head, rows)
    linear = None if part.gate is None else problem.linear(part)
    return scores, problem.activation.value(scores), linear


def _add_product(
    sums: dict[str, Array],
    name: str,
    dproduct: Array,
    allowed: Array,
    key: Array,
    query: Array,
    rows: slice,
) -> None:
    """Add the gradients of ``product = query keyᵀ`` with respect to both factors."""
    sums["query"][rows, :] += masked_matmul(dproduct, allowed, key)
    sums[name] += masked_matmul(dproduct.T, allowed.T, query)
