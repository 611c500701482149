"""
The dense function, forward and backward, in plain products: the oracle.

Each chunk of queries is independent of the others. The backward pass keeps nothing of the forward
pass: it makes the scores of a chunk again (the paper's query chunking, section 2.1).
"""

from __future__ import annotations

from concurrent.futures import Executor

from topk_np._namespace import Array, cast
from topk_np.gradients import Addend, RowsTerm, Term, sum_gradients
from topk_np.kernels.portable import masked_matmul
from topk_np.problem import Part, Problem, Task


def forward(problem: Problem, chunk: int, workers: int | Executor) -> Array:
    """The output (..., Q, V)."""
    xp = problem.xp
    out = problem.zeros(*problem.out_shape, dtype=problem.query.dtype)

    def matrix(part: Part, name: str) -> Array:
        return cast(xp, part.stacked(name), problem.dtype)

    def work(task: Task) -> None:
        part = problem.part(task)
        scores, activated, linear = _weights(problem, part, task)
        allowed = scores != -xp.inf
        weights = xp.where(allowed, activated if linear is None else activated * linear, 0.0)
        piece = masked_matmul(weights, allowed, matrix(part, "value"))
        if problem.value_bias is not None:
            piece = piece + matrix(part, "value_bias")
        (head,) = task.heads
        out[(*head, task.rows, slice(None))] = cast(xp, piece, out.dtype)

    with problem.crew(workers) as crew:
        crew.map(work, problem.tasks(chunk))
    return out


def backward(
    problem: Problem, dout: Array, chunk: int, workers: int | Executor
) -> dict[str, Array]:
    """The gradients of the inputs by name."""
    xp = problem.xp

    def matrix(part: Part, name: str) -> Array:
        return cast(xp, part.stacked(name), problem.dtype)

    def terms_of(task: Task) -> list[Addend]:
        (head,), rows = task
        part = problem.part(task)
        scores, activated, linear = _weights(problem, part, task)
        allowed = scores != -xp.inf
        weights = xp.where(allowed, activated if linear is None else activated * linear, 0.0)
        dpiece = cast(xp, dout[(*head, rows, slice(None))], problem.dtype)

        # piece = weights value + value_bias
        dweights = xp.where(allowed, dpiece @ matrix(part, "value").T, 0.0)
        terms: dict[str, Term] = {"value": RowsTerm(masked_matmul(weights.T, allowed.T, dpiece), 0)}
        if problem.value_bias is not None:
            terms["value_bias"] = RowsTerm(xp.sum(dpiece, axis=0, keepdims=True), 0)
        # weights = activation(scores) * linear
        dactivated = dweights if linear is None else dweights * linear
        dscores = xp.where(allowed, problem.activation.vjp(scores, activated, dactivated), 0.0)
        # scores, or the linear factor of a gated unit, = scale * query keyᵀ + key_bias
        dproduct = dscores if linear is None else xp.where(allowed, dweights * activated, 0.0)
        if problem.key_bias is not None:
            terms["key_bias"] = RowsTerm(xp.sum(dproduct, axis=0)[:, None], 0)
        dproduct = dproduct * problem.scale
        terms["key"] = RowsTerm(masked_matmul(dproduct.T, allowed.T, part.query), 0)
        dquery = masked_matmul(dproduct, allowed, matrix(part, "key"))
        if problem.gate is not None:
            terms["gate"] = RowsTerm(masked_matmul(dscores.T, allowed.T, part.query), 0)
            dquery = dquery + masked_matmul(dscores, allowed, matrix(part, "gate"))
        terms["query"] = RowsTerm(dquery, rows.start)
        return [(name, head, term) for name, term in terms.items()]

    with problem.crew(workers) as crew:
        return sum_gradients(problem, terms_of, problem.tasks(chunk), crew, wave_size=crew.threads)


def _weights(problem: Problem, part: Part, task: Task) -> tuple[Array, Array, Array | None]:
    """The scores of a chunk, their activation, and the linear factor of a gated unit."""
    scores = problem.scores(part, task)
    linear = problem.linear(part, task, slice(0, problem.keys))
    return scores, problem.activation.value(scores), linear
