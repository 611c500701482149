"""
Dense attention of many short heads at once, in products of stacks of matrices.

The steps are those of `topk_np.dense.core`, for the masks that a batch of padded sequences needs:
see `topk_np.packs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from array_api_compat import device

from topk_np._namespace import Array, cast, is_cupy
from topk_np.chunking import PACKED_SCORES, SHORT_SCORES, slices
from topk_np.kernels import engine
from topk_np.packs import allowed_pairs
from topk_np.problem import Problem


def stacks(problem: Problem) -> bool:
    """
    Whether this is attention of many short heads, without any option that goes head by head.

    Not on a GPU, which would have to be waited for to see whether all is finite.
    """
    return (
        problem.plain
        and not is_cupy(problem.xp)
        and math.prod(problem.batch) > 1
        and 0 < problem.queries * problem.keys <= SHORT_SCORES
    )


def forward(problem: Problem, workers: int | Executor) -> Array | None:
    """The output (..., Q, V); None where something is not finite, which asks for more care."""
    xp = problem.xp

    def work(heads: slice) -> tuple[Array, ...]:
        made = _weigh(problem, arrays, heads)
        return (made.weights @ made.value,)

    arrays = {name: _flat(problem, array) for name, array in problem.inputs.items()}
    made = _map(problem, workers, work)
    if made is None:
        return None
    out = _joined(problem, [piece for (piece,) in made])
    return cast(xp, out, problem.query.dtype)


def backward(problem: Problem, dout: Array, workers: int | Executor) -> dict[str, Array] | None:
    """The gradients of query, key and value; None where something is not finite."""
    xp, transpose = problem.xp, problem.xp.matrix_transpose

    def work(heads: slice) -> tuple[Array, ...]:
        made = _weigh(problem, arrays, heads)
        dpiece = cast(xp, arrays["dout"][heads, ...], problem.dtype)
        # out = weights value
        dvalue = transpose(made.weights) @ dpiece
        dweights = dpiece @ transpose(made.value)
        # weights = softmax(scores)
        rows = (-1, made.weights.shape[-1])
        dscores = xp.reshape(
            engine(xp).softmax_vjp(xp.reshape(made.weights, rows), xp.reshape(dweights, rows)),
            made.weights.shape,
        )
        # scores = scale query keyᵀ
        dscores *= problem.scale
        dkey = transpose(dscores) @ made.query
        return dscores @ made.key, _padded(problem, dkey), _padded(problem, dvalue)

    arrays = {name: _flat(problem, array) for name, array in problem.inputs.items()}
    arrays["dout"] = _flat(problem, dout)
    made = _map(problem, workers, work)
    if made is None:
        return None
    grads = {}
    for name, pieces in zip(("query", "key", "value"), zip(*made, strict=True), strict=True):
        array = problem.inputs[name]
        summed = _unbroadcast(problem, _joined(problem, pieces), tuple(array.shape))
        grads[name] = cast(xp, summed, array.dtype)
    return grads


class _Stack(NamedTuple):
    """Some heads, and the keys that any of their queries sees."""

    query: Array
    """(G, Q, D)"""
    key: Array
    """(G, n, D)"""
    value: Array
    """(G, n, V)"""
    weights: Array
    """(G, Q, n)"""


def _weigh(problem: Problem, arrays: dict[str, Array], heads: slice) -> _Stack:
    """The forward pass up to its weights."""
    xp = problem.xp
    hidden, keys = _hidden(problem, heads)
    query = cast(xp, arrays["query"][heads, ...], problem.dtype)
    key, value = (
        cast(xp, arrays[name][heads, :keys, :], problem.dtype) for name in ("key", "value")
    )
    scores = query @ xp.matrix_transpose(key)
    scores *= problem.scale
    if hidden is not None:
        scores += hidden
    rows = xp.reshape(scores, (-1, keys))
    return _Stack(query, key, value, xp.reshape(engine(xp).softmax(rows), scores.shape))


def _hidden(problem: Problem, heads: slice) -> tuple[Array | None, int]:
    """
    What hides keys from queries, and n, the keys that any of these queries sees.

    (G or 1, Q or 1, n) to be added to scores: 0, or -inf where a key is hidden; None if none is.
    A score of NaN or inf becomes NaN, which is noticed; `where` would take eight times as long.
    """
    xp = problem.xp
    allowed, keys = allowed_pairs(problem, heads)
    if allowed is None:
        return None, keys
    hidden = xp.asarray(np.where(allowed, 0.0, -np.inf), device=device(problem.query))
    return cast(xp, hidden, problem.dtype), keys


def _flat(problem: Problem, array: Array) -> Array:
    """An array (..., n, D) of an input as (heads, n, D)."""
    xp, matrix = problem.xp, tuple(array.shape[-2:])
    full = xp.broadcast_to(array, (*problem.batch, *matrix))
    return xp.reshape(full, (math.prod(problem.batch), *matrix))


def _map(
    problem: Problem, workers: int | Executor, work: Callable[[slice], tuple[Array, ...]]
) -> list[tuple[Array, ...]] | None:
    """What `work` makes of each pack of heads; None if not all of it is finite."""
    xp = problem.xp
    size = max(1, PACKED_SCORES // (problem.queries * problem.keys))

    def checked(heads: slice) -> tuple[Array, ...] | None:
        made = work(heads)
        return made if all(bool(xp.isfinite(xp.sum(array))) for array in made) else None

    with problem.crew(workers) as crew:
        made = crew.map(checked, slices(math.prod(problem.batch), size))
    finite = [pieces for pieces in made if pieces is not None]
    return finite if len(finite) == len(made) else None


def _padded(problem: Problem, rows: Array) -> Array:
    """The gradient (G, N, D) of the keys, of which those that nobody sees have none."""
    hidden = problem.keys - rows.shape[1]
    if not hidden:
        return rows
    return problem.xp.concat([rows, problem.zeros(rows.shape[0], hidden, rows.shape[2])], axis=1)


def _joined(problem: Problem, pieces: Sequence[Array]) -> Array:
    """What was made of all packs, (..., n, D)."""
    xp = problem.xp
    whole = pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=0)
    return xp.reshape(whole, (*problem.batch, *whole.shape[-2:]))


def _unbroadcast(problem: Problem, grad: Array, shape: tuple[int, ...]) -> Array:
    """The gradient summed over the heads that share an input of this shape."""
    added = grad.ndim - len(shape)
    grad = problem.xp.sum(grad, axis=tuple(range(added))) if added else grad
    shared = tuple(
        axis for axis, length in enumerate(shape[:-2]) if length == 1 != grad.shape[axis]
    )
    return problem.xp.sum(grad, axis=shared, keepdims=True) if shared else grad
