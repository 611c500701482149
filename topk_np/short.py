"""
Top-k attention of short heads, many at once, in products of stacks of matrices.

The steps are those of `topk_np.core`, but that weights stand in matrices (G, Q, n) with 0 for what
is not kept: where rows are short, multiplying by all values costs less than gathering some. What is
kept for the backward pass is the same. NumPy alone; what is not finite asks for more care, and is
left to `topk_np.core`.
"""

from __future__ import annotations

import math
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import Array, Filled, cast
from topk_np.chunking import Chunks, slices
from topk_np.core import Kept
from topk_np.kernels.numpy import MOST_EXPONENT, add_slots, softmax
from topk_np.kernels.numpy_mark import mark
from topk_np.packs import allowed_pairs, matrices
from topk_np.problem import Problem
from topk_np.rules import Rule
from topk_np.workers import MOST_TASKS


def forward(
    problem: Problem,
    rule: Rule,
    chunks: Chunks,
    workers: int | Executor,
    kept: Kept | None = None,
    lse: Filled | None = None,
) -> Array | None:
    """The output, as `topk_np.core.forward` makes it; None where something is not finite."""
    out = np.empty(problem.out_shape, problem.query.dtype)

    def work(heads: slice) -> bool:
        # 1  scores = scale query keyᵀ; -inf where masked
        stack = _stack(problem, heads)
        scores = stack.query @ stack.key.mT
        if problem.late_scale != problem.scale:
            scores *= problem.scale
        counts: Any = min(rule.most, stack.keys)
        if stack.allowed is not None:
            scores += np.where(stack.allowed, 0, -np.inf).astype(scores.dtype)
            most = np.minimum(np.count_nonzero(stack.allowed, axis=-1), counts)
            counts = np.broadcast_to(most, scores.shape[:2]).reshape(-1)
        # 2  the best of each row
        rows = scores.reshape(-1, stack.keys)
        marked = mark(rows, counts)
        if marked is None:
            return False
        late = problem.late_scale
        rows *= late
        if kept is not None:
            _keep(problem, kept, heads, rows, marked.hits, counts)
        # 3  weights = softmax(best), but for the division by their total; where the largest of each
        #    row is neither negative, which makes totals at least 1, nor too much for exp, without
        #    taking it off
        shift = None
        if marked.most * late >= MOST_EXPONENT or marked.largest.min() < 0:
            shift = marked.largest * late
            rows -= shift
        np.exp(rows, out=rows)
        rows *= marked.hits
        totals = scores @ np.ones((stack.keys, 1), scores.dtype)
        if lse is not None:
            own = _view(problem, lse.array)[heads]
            np.log(totals, out=own)
            if shift is not None:
                own += shift.reshape(own.shape)
        if stack.allowed is not None:
            totals[totals == 0] = 1
        # 4  out = weights value
        own = _view(problem, out)[heads]
        piece = np.matmul(scores, stack.value, out=own if own.dtype == scores.dtype else None)
        piece /= totals
        if piece is not own:
            own[...] = piece
        return _finite(piece) and _finite(totals)

    with problem.crew(workers) as crew:
        done = crew.map(work, slices(math.prod(problem.batch), chunks.heads))
    return out if all(done) else None


def backward(
    problem: Problem,
    kept: Kept,
    dout: Array,
    chunks: Chunks,
    workers: int | Executor,
    dlse: Array | None = None,
) -> dict[str, Array] | None:
    """The gradients, as `topk_np.core.backward` makes them; None where something is not finite."""
    arrays = problem.inputs
    shared = {name for name, array in arrays.items() if array.shape[:-2] != problem.batch}
    grads = {
        name: (np.zeros if name in shared else np.empty)(array.shape, array.dtype)
        for name, array in arrays.items()
    }

    def work(heads: slice) -> dict[str, Array] | None:
        stack = _stack(problem, heads)
        scores, indices = _slots(problem, kept, heads)
        rows, slots = indices.shape
        if indices.min() < 0:
            indices = np.maximum(indices, 0)  # unused slots weigh 0, wherever that is added
        weights = np.zeros((rows, stack.keys), problem.dtype)
        add_slots(softmax(scores), indices, np.full(rows, slots, np.int32), weights)
        weights = weights.reshape(-1, problem.queries, stack.keys)
        dpiece = cast(np, matrices(dout, problem.batch, heads), problem.dtype)
        # 4  out = weights value
        pieces = {"value": product("value", heads, weights.mT, dpiece)}
        dscores = dpiece @ stack.value.mT  # the gradients of the weights, to begin with
        # 3  weights = softmax(best)
        dscores *= weights
        totals = dscores @ np.ones((stack.keys, 1), dscores.dtype)
        if dlse is not None:
            totals -= matrices(dlse, problem.batch, heads)
        weights *= totals
        dscores -= weights
        # 1  scores = scale query keyᵀ
        dscores *= problem.scale
        pieces["query"] = product("query", heads, dscores, stack.key)
        pieces["key"] = product("key", heads, dscores.mT, stack.query)
        finite = all(map(_finite, pieces.values()))
        return {name: pieces[name] for name in shared} if finite else None

    def product(name: str, heads: slice, left: Array, right: Array) -> Array:
        """A product of stacks, which is in its place already where heads do not share it."""
        if name in shared:
            return left @ right
        own, rows = _view(problem, grads[name])[heads], left.shape[1]
        own[:, rows:] = 0  # keys that no query of these heads sees
        return _product(left, right, own[:, :rows])

    packs = list(slices(math.prod(problem.batch), chunks.heads))
    with problem.crew(workers) as crew:
        # What goes to gradients that heads share is added here, in order, a few packs at a time.
        for wave in slices(len(packs), MOST_TASKS if shared else len(packs)):
            for heads, pieces in zip(packs[wave], crew.map(work, packs[wave]), strict=True):
                if pieces is None:
                    return None
                for name in shared:
                    _add(problem, grads[name], heads, pieces[name])
    return grads


class _Stack(NamedTuple):
    """The matrices of some heads, in the computing dtype, and the keys that any query sees."""

    query: Array
    """(G, Q, D)"""
    key: Array
    """(G, n, D)"""
    value: Array
    """(G, n, V)"""
    allowed: Array | None
    """(G or 1, Q or 1, n) bool; None if all are."""

    @property
    def keys(self) -> int:
        """How many they are, n."""
        return int(self.key.shape[1])


def _stack(problem: Problem, heads: slice) -> _Stack:
    allowed, keys = allowed_pairs(problem, heads)
    query, key, value = (
        cast(np, matrices(array, problem.batch, heads), problem.dtype)
        for array in (problem.query, problem.key, problem.value)
    )
    return _Stack(query, key[:, :keys], value[:, :keys], allowed)


def _keep(
    problem: Problem, kept: Kept, heads: slice, scores: Array, hits: Array, counts: int | Array
) -> None:
    """Store the hits among the scores (G Q, n)."""
    flat = np.flatnonzero(hits)
    rows, columns = scores.shape
    starts = np.arange(0, rows * columns, columns, dtype=np.int32)
    values, indices = _slots(problem, kept, heads)
    if flat.size == values.size:
        places = flat.reshape(values.shape)
        np.take(scores, places, out=values, mode="clip")  # no place is outside
        indices[...] = places
        indices -= starts[:, None]
    else:
        used = np.arange(values.shape[1]) < np.reshape(counts, (-1, 1))
        values[...], indices[...] = -np.inf, -1
        values[used], indices[used] = scores.reshape(-1)[flat], flat - np.repeat(starts, counts)


def _slots(problem: Problem, kept: Kept, heads: slice) -> tuple[Array, Array]:
    """The kept scores and indices of some heads, (G Q, K) each."""
    scores, indices = _view(problem, kept.scores.array), _view(problem, kept.indices.array)
    slots = (-1, scores.shape[-1])
    return scores[heads].reshape(slots), indices[heads].reshape(slots)


def _product(left: Array, right: Array, own: Array) -> Array:
    """The product of two stacks, stored in `own`, and itself in the dtype that is computed in."""
    if own.dtype == left.dtype:
        return np.matmul(left, right, out=own)
    piece = left @ right
    own[...] = piece
    return piece


def _finite(piece: Array) -> bool:
    """Whether all of an array is finite, and so are its squares."""
    return math.isfinite(np.vdot(piece, piece))


def _view(problem: Problem, array: Array) -> Array:
    """An array (..., n, ·) of ours as (heads, n, ·)."""
    return array.reshape(math.prod(problem.batch), *array.shape[-2:])


def _add(problem: Problem, grad: Array, heads: slice, pieces: Array) -> None:
    """Add what each head contributes (G, n, ·) to the gradient of an input that heads share."""
    lead = grad.shape[:-2]
    total = grad.reshape(math.prod(lead), *grad.shape[-2:])
    places = np.arange(total.shape[0]).reshape(lead)
    owners = np.broadcast_to(places, problem.batch).reshape(-1)[heads]
    for owner, piece in zip(owners, pieces, strict=True):
        total[owner, : piece.shape[0]] += piece
