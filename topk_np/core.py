"""
The top-k function, forward and backward, once for attention and the feed-forward layer alike.

For a chunk of C queries of one head::

    1  scores  = scale query keyᵀ + key_bias            (C, n), for one block of keys at a time
    2  kept, indices = the k largest of each row        (C, K), merged block by block
    3  weights = activation(kept)                       a gated unit: times its linear factor
    4  out     = sum_j weights_ij value[indices_ij] + value_bias

The backward pass walks the same steps from the bottom up and never makes anything of size C x N.
Steps 1 and 2 are those of Gupta et al. 2021, section 2; products with what is kept are row-sparse.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from topk_np._namespace import Array, cast, nbytes
from topk_np.chunking import Chunks, slices
from topk_np.gradients import RowsTerm, SparseTerm, Term, sum_gradients
from topk_np.masking import Head
from topk_np.problem import Part, Problem, Task
from topk_np.rowsparse import gather_matmul, sampled_matmul
from topk_np.selection import KBest
from topk_np.workers import Scratch


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
        return sum(nbytes(array) for array in arrays if array is not None)


def forward(
    problem: Problem, k: int, chunks: Chunks, workers: int | Executor
) -> tuple[Array, Kept]:
    """The output (..., Q, V) and what is kept for `backward`."""
    xp = problem.xp
    shape = (*problem.batch, problem.queries, min(k, problem.keys))
    out = problem.zeros(*problem.out_shape, dtype=problem.query.dtype)
    kept_scores = problem.zeros(*shape)
    kept_indices = problem.zeros(*shape, dtype=xp.int32)
    kept_linear = None if problem.gate is None else problem.zeros(*shape)

    with problem.crew(workers) as crew:

        def work(task: Task) -> None:
            head, rows = task
            here = (*head, rows, slice(None))
            part = problem.part(head, rows)
            scores, indices, linear = _select(
                problem, part, head, rows, k, chunks.keys, crew.scratch
            )
            kept_scores[here], kept_indices[here] = scores, indices
            weights = problem.activation.value(scores)
            if kept_linear is not None:
                kept_linear[here] = linear
                weights = weights * linear
            piece = gather_matmul(weights, indices, _counts(xp, indices), part.value)
            if part.value_bias is not None:
                piece = piece + cast(xp, part.value_bias, problem.dtype)
            out[here] = cast(xp, piece, out.dtype)

        crew.map(work, problem.tasks(chunks.queries))
    return out, Kept(kept_scores, kept_indices, kept_linear)


def backward(
    problem: Problem, kept: Kept, dout: Array, chunks: Chunks, workers: int | Executor
) -> dict[str, Array]:
    """The gradients of the inputs by name."""
    xp = problem.xp

    def terms_of(head: Head, rows: slice) -> dict[str, Term]:
        here = (*head, rows, slice(None))
        part = problem.part(head, rows)
        scores, indices = kept.scores[here], kept.indices[here]
        counts = _counts(xp, indices)
        activated = problem.activation.value(scores)
        linear = None if kept.linear is None else kept.linear[here]
        dpiece = cast(xp, dout[here], problem.dtype)

        def scatter(weights: Array, matrix: Array) -> Term:
            return SparseTerm(weights, indices, counts, matrix)

        # 4  out = sum_j weights_ij value[indices_ij] + value_bias
        dweights = sampled_matmul(dpiece, part.value, indices, counts)
        weights = activated if linear is None else activated * linear
        terms: dict[str, Term] = {"value": scatter(weights, dpiece)}
        if part.value_bias is not None:
            terms["value_bias"] = RowsTerm(xp.sum(dpiece, axis=0, keepdims=True), 0)
        # 3  weights = activation(kept), times the linear factor
        dactivated = dweights if linear is None else dweights * linear
        dscores = problem.activation.vjp(scores, activated, dactivated)
        # 1  scores, or the linear factor of a gated unit, = scale query keyᵀ + key_bias
        dproduct = dscores if linear is None else dweights * activated
        if part.key_bias is not None:
            terms["key_bias"] = scatter(dproduct, xp.ones_like(dpiece[:, :1]))
        dproduct = dproduct if problem.scale == 1 else dproduct * problem.scale
        terms["key"] = scatter(dproduct, part.query)
        dquery = gather_matmul(dproduct, indices, counts, part.key)
        if part.gate is not None:
            terms["gate"] = scatter(dscores, part.query)
            dquery = dquery + gather_matmul(dscores, indices, counts, part.gate)
        terms["query"] = RowsTerm(dquery, rows.start)
        return terms

    with problem.crew(workers) as crew:
        return sum_gradients(problem, terms_of, chunks.backward_queries, crew)


def _select(
    problem: Problem,
    part: Part,
    head: Head,
    rows: slice,
    k: int,
    block: int,
    scratch: Scratch,
) -> tuple[Array, Array, Array | None]:
    """Steps 1 and 2: kept scores, their indices, and linear factors if gated, all (C, K)."""
    xp = problem.xp
    seen = problem.keys
    if problem.mask is not None:
        seen = problem.mask.visible(head, rows, seen)
    best = KBest(k)
    for keys in list(slices(seen, block)) or [slice(0, min(problem.keys, 1))]:
        ranks = problem.ranks(part, head, rows, keys, scratch)
        if not problem.ranks_weights:
            best.add(ranks, keys.start)
            continue
        weights = problem.activation.value(ranks)
        linear = problem.linear(part, keys, scratch)
        others = [ranks] if linear is None else [ranks, linear]
        sizes = xp.abs(weights if linear is None else weights * linear)
        best.add(xp.where(ranks == -xp.inf, -xp.inf, sizes), keys.start, *others)

    scores, indices, *others = best.result(min(k, problem.keys))
    if problem.ranks_weights:
        scores = xp.where(indices < 0, -xp.inf, others[0])
    if problem.late_scale != 1:
        scores = scores * problem.late_scale
    if part.gate is None:
        return scores, indices, None
    if problem.ranks_weights:
        return scores, indices, others[1]
    # Ranked by the gate's score, so the linear factor is needed at the kept units only.
    linear = sampled_matmul(part.query, part.key, indices, _counts(xp, indices))
    if part.key_bias is not None:
        bias = cast(xp, part.key_bias[:, 0], problem.dtype)
        flat = xp.reshape(xp.where(indices < 0, 0, indices), (-1,))
        linear = linear + xp.reshape(xp.take(bias, flat), indices.shape)
    return scores, indices, linear


def _counts(xp: Array, indices: Array) -> Array:
    """(C,) int32: the slots of each row that are in use."""
    return xp.sum(xp.astype(indices >= 0, xp.int32), axis=1, dtype=xp.int32)
