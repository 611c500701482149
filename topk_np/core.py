"""
The top-k function, forward and backward, once for attention and the feed-forward layer alike.

For a chunk of C queries of one head::

    1  scores  = scale query keyᵀ + key_bias            (C, N), the largest thing ever held
    2  kept, indices = the k largest of each row        (C, K)
    3  weights = activation(kept)                       a gated unit: times its linear factor
    4  out     = sum_j weights_ij value[indices_ij] + value_bias

The backward pass walks the same steps from the bottom up and never makes anything of size C x N.
Steps 1 and 2 are those of Gupta et al. 2021, section 2; products with what is kept are row-sparse.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from topk_np._namespace import Array, cast
from topk_np.masking import Head
from topk_np.problem import Part, Problem
from topk_np.rowsparse import gather_matmul, sampled_matmul, scatter_matmul
from topk_np.selection import select


@dataclass(frozen=True)
class Kept:
    """What the forward pass keeps for the backward pass, beyond the inputs."""

    scores: Array
    """(..., Q, K) scores of the kept keys; -inf in unused slots."""
    indices: Array
    """(..., Q, K) int32, ascending; -1 in unused slots."""
    linear: Array | None
    """(..., Q, K) linear factors of gated units."""

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        arrays = (self.scores, self.indices, self.linear)
        return sum(array.nbytes for array in arrays if array is not None)


def forward(problem: Problem, k: int, chunk: int, workers: int | Executor) -> tuple[Array, Kept]:
    """The output (..., Q, V) and what is kept for `backward`."""
    xp = problem.xp
    rows_of = (*problem.batch, problem.queries)
    slots = min(k, problem.keys)
    out = problem.zeros(*problem.out_shape, dtype=problem.query.dtype)
    kept_scores = problem.zeros(*rows_of, slots)
    kept_indices = problem.zeros(*rows_of, slots, dtype=xp.int32)
    kept_linear = None if problem.gate is None else problem.zeros(*rows_of, slots)

    def work(head: Head, rows: slice) -> None:
        here = (*head, rows, slice(None))
        part = problem.part(head, rows)
        scores, indices, counts, linear = _select(problem, part, head, rows, k)
        kept_scores[here], kept_indices[here] = scores, indices
        weights = problem.activation.value(scores)
        if kept_linear is not None:
            kept_linear[here] = linear
            weights = weights * linear
        piece = gather_matmul(weights, indices, counts, part.value)
        if part.value_bias is not None:
            piece = piece + part.value_bias
        out[here] = cast(xp, piece, out.dtype)

    problem.for_each_chunk(work, chunk, workers)
    return out, Kept(kept_scores, kept_indices, kept_linear)


def backward(
    problem: Problem, kept: Kept, dout: Array, chunk: int, workers: int | Executor
) -> dict[str, Array]:
    """The gradients of the inputs by name."""
    xp = problem.xp

    def add(sums: dict[str, Array], head: Head, rows: slice) -> None:
        here = (*head, rows, slice(None))
        part = problem.part(head, rows)
        scores, indices = kept.scores[here], kept.indices[here]
        counts = xp.sum(xp.astype(indices >= 0, xp.int32), axis=1, dtype=xp.int32)
        activated = problem.activation.value(scores)
        linear = None if kept.linear is None else kept.linear[here]
        dpiece = cast(xp, dout[here], problem.dtype)

        def add_product(name: str, dproduct: Array, key: Array) -> None:
            """Add the gradients of ``product = query keyᵀ``, taken at the kept keys."""
            sums["query"][rows, :] += gather_matmul(dproduct, indices, counts, key)
            _scatter(dproduct, indices, counts, part.query, sums[name])

        # 4  out = sum_j weights_ij value[indices_ij] + value_bias
        dweights = sampled_matmul(dpiece, part.value, indices, counts)
        weights = activated if linear is None else activated * linear
        _scatter(weights, indices, counts, dpiece, sums["value"])
        if "value_bias" in sums:
            sums["value_bias"] += xp.sum(dpiece, axis=0, keepdims=True)
        # 3  weights = activation(kept), times the linear factor
        dactivated = dweights if linear is None else dweights * linear
        dscores = problem.activation.vjp(scores, activated, dactivated)
        if linear is None:
            dlinear = dscores
        else:
            dlinear = dweights * activated
            add_product("gate", dscores, part.gate)
        # 1  scores, or the linear factor, = scale query keyᵀ + key_bias
        if "key_bias" in sums:
            ones = xp.ones_like(dpiece[:, :1])
            _scatter(dlinear, indices, counts, ones, sums["key_bias"].T)
        add_product("key", dlinear * problem.scale, part.key)

    return problem.sum_gradients(add, chunk, workers)


def _select(
    problem: Problem, part: Part, head: Head, rows: slice, k: int
) -> tuple[Array, Array, Array, Array | None]:
    """Steps 1 and 2: kept scores, their indices, slots in use, and linear factors if gated."""
    xp = problem.xp
    scores = problem.scores(part, head, rows)
    if not problem.ranks_weights:
        values, indices, counts = select(scores, k)
        if part.gate is None:
            return values, indices, counts, None
        # Ranked by the gate's score, so the linear factor is needed at the kept units only.
        linear = sampled_matmul(part.query, part.key, indices, counts)
        if part.key_bias is not None:
            linear = linear + _take(xp, part.key_bias, indices, 0.0)
        return values, indices, counts, linear

    weights = problem.activation.value(scores)
    if part.gate is not None:
        all_linear = problem.linear(part)
        weights = weights * all_linear
    sizes = xp.where(scores == -xp.inf, -xp.inf, xp.abs(weights))
    _, indices, counts = select(sizes, k)
    linear = None if part.gate is None else _take(xp, all_linear, indices, 0.0)
    return _take(xp, scores, indices, -xp.inf), indices, counts, linear


def _take(xp: Array, matrix: Array, indices: Array, unused: float) -> Array:
    """``matrix[i, indices[i, j]]`` of (C, N), or of a row (1, N) for all; `unused` at -1."""
    used = indices >= 0
    if matrix.shape[1] == 0:
        return xp.astype(indices, matrix.dtype)
    safe = xp.astype(xp.where(used, indices, 0), xp.int64)
    if matrix.shape[0] == 1:
        taken = xp.reshape(xp.take(matrix[0, :], xp.reshape(safe, (-1,))), indices.shape)
    else:
        taken = xp.take_along_axis(matrix, safe, axis=1)
    return xp.where(used, taken, unused)


def _scatter(weights: Array, indices: Array, counts: Array, rows: Array, total: Array) -> None:
    """Add a transposed row-sparse product to `total` (N, V), in place for every engine."""
    updated = scatter_matmul(weights, indices, counts, rows, total)
    if updated is not total:
        total[...] = updated
