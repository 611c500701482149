"""
The dense function, forward and backward, in plain products: the oracle.

Each chunk of queries is independent of the others. The backward pass keeps nothing of the forward
pass: it makes the scores of a chunk again (the paper's query chunking, section 2.1).
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import NamedTuple

from array_api_compat import device

from topk_np._namespace import Array, Filled, array_namespace, cast, is_cupy
from topk_np.activations import logsumexp
from topk_np.gradients import Addend, sum_gradients
from topk_np.kernels.masked import masked_matmul
from topk_np.problem import Problem
from topk_np.terms import DenseTerm, RowsTerm, Term
from topk_np.work import Task


class _Chunk(NamedTuple):
    """The forward pass of a chunk up to its weights, for the keys that any of its queries sees."""

    first: int
    """The first of these keys."""
    query: Array
    """(C, D)"""
    key: Array
    """(n, D), as the next two."""
    value: Array
    gate: Array | None
    scores: Array
    """(C, n), as all that follow."""
    allowed: Array
    activated: Array
    linear: Array | None
    """The linear factor of a gated unit."""
    factors: Array | None
    """What dropout multiplies the weights by."""
    weights: Array
    whole: bool
    """Whether all are allowed, as far as is known."""

    def where_allowed(self, matrix: Array) -> Array:
        """A matrix (C, n), 0 where nothing is allowed."""
        return matrix if self.whole else array_namespace(matrix).where(self.allowed, matrix, 0.0)


def forward(
    problem: Problem, chunk: int, workers: int | Executor, lse: Filled | None = None
) -> Array:
    """The output (..., Q, V); `lse` (..., Q, 1), if given, gets the log-sum-exp of the scores."""
    xp = problem.xp
    out = Filled(problem.zeros(*problem.out_shape, dtype=problem.query.dtype))

    def work(task: Task) -> None:
        made = _weigh(problem, task)
        piece = masked_matmul(made.weights, made.allowed, made.value)
        if problem.value_bias is not None:
            piece = piece + cast(xp, problem.value_bias, problem.dtype)
        (head,) = task.heads
        out[(*head, task.rows, slice(None))] = cast(xp, piece, problem.query.dtype)
        if lse is not None:
            lse[(*head, task.rows, slice(None))] = logsumexp(made.scores)

    with problem.crew(workers) as crew:
        crew.map(work, problem.tasks(chunk))
    return out.array


def backward(
    problem: Problem,
    dout: Array,
    chunk: int,
    workers: int | Executor,
    dlse: Array | None = None,
) -> dict[str, Array]:
    """The gradients of the inputs by name, from those of the output and of the log-sum-exp."""
    xp = problem.xp

    def terms_of(task: Task) -> list[Addend]:
        (head,), rows = task
        made = _weigh(problem, task)
        first, query, key, value, gate, scores, allowed, activated, linear, factors, weights, _ = (
            made
        )
        dpiece = cast(xp, dout[(*head, rows, slice(None))], problem.dtype)

        # piece = weights value + value_bias
        dweights = made.where_allowed(dpiece @ value.T)
        terms: dict[str, Term] = {"value": DenseTerm(weights, allowed, dpiece, first)}
        if problem.value_bias is not None:
            terms["value_bias"] = RowsTerm(xp.sum(dpiece, axis=0, keepdims=True), 0)
        if factors is not None:
            dweights = dweights * factors
        # weights = activation(scores) * linear
        dactivated = dweights if linear is None else dweights * linear
        dscores = made.where_allowed(problem.activation.vjp(scores, activated, dactivated))
        if dlse is not None:
            drows = cast(xp, dlse[(*head, rows, slice(None))], problem.dtype)
            dscores = dscores + made.where_allowed(activated * drows)
        # scores = softcap(scale * query keyᵀ) + bias; of a feed-forward layer query keyᵀ +
        # key_bias, or of a gated unit the linear factor
        if problem.learned_bias is not None:
            keys = slice(first, first + key.shape[0])
            terms["bias"] = problem.learned_bias.dense_term(head, rows, keys, dscores)
        dproduct = dscores if linear is None else made.where_allowed(dweights * activated)
        if problem.softcap is not None:
            capped = xp.tanh(query @ key.T * (problem.scale / problem.softcap))
            dproduct = made.where_allowed(dproduct * (1 - capped**2))
        if problem.key_bias is not None:
            terms["key_bias"] = RowsTerm(xp.sum(dproduct, axis=0)[:, None], first)
        dproduct = dproduct if problem.scale == 1 else dproduct * problem.scale
        terms["key"] = DenseTerm(dproduct, allowed, query, first)
        dquery = masked_matmul(dproduct, allowed, key)
        if gate is not None:
            terms["gate"] = DenseTerm(dscores, allowed, query, first)
            dquery = dquery + masked_matmul(dscores, allowed, gate)
        terms["query"] = RowsTerm(dquery, rows.start)
        return [(name, head, term) for name, term in terms.items()]

    with problem.crew(workers) as crew:
        return sum_gradients(problem, terms_of, problem.tasks(chunk), crew, wave_size=crew.threads)


def _weigh(problem: Problem, task: Task) -> _Chunk:
    """Everything of a chunk's forward pass that both passes need."""
    xp, part = problem.xp, problem.part(task)
    keys = problem.seen(task)

    def matrix(name: str) -> Array:
        return cast(xp, part.stacked(name)[keys, :], problem.dtype)

    scores = problem.scores(part, task, keys)
    linear = problem.linear(part, task, keys)
    activated = problem.activation.value(scores)
    allowed = scores != -xp.inf
    whole = not is_cupy(xp) and bool(xp.all(allowed))  # a GPU would have to be waited for
    weights = activated if linear is None else activated * linear
    factors = None
    if problem.dropout is not None:
        places = xp.arange(keys.start, keys.stop, dtype=xp.int64, device=device(scores))
        factors = problem.dropout_factors(task, xp.broadcast_to(places[None, :], scores.shape))
        weights = weights * factors
    return _Chunk(
        keys.start,
        part.query,
        matrix("key"),
        matrix("value"),
        None if problem.gate is None else matrix("gate"),
        scores,
        allowed,
        activated,
        linear,
        factors,
        weights if whole else xp.where(allowed, weights, 0.0),
        whole,
    )
