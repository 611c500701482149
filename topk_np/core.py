"""
The top-k function, forward and backward, once for attention and the feed-forward layer alike.

For a chunk of C queries of one head, or of G short heads at once::

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

from array_api_compat import device

from topk_np._namespace import Array, Namespace, cast, nbytes
from topk_np.chunking import Chunks, slices
from topk_np.gradients import Addend, RowsTerm, SparseTerm, sum_gradients
from topk_np.problem import Part, Problem, Task
from topk_np.rowsparse import gather_matmul, sampled_matmul, scatter_matmul
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

    @classmethod
    def empty(cls, problem: Problem, k: int) -> Kept:
        """Room for what a problem's forward pass keeps."""
        shape = (*problem.batch, problem.queries, min(k, problem.keys))
        return cls(
            problem.zeros(*shape),
            problem.zeros(*shape, dtype=problem.xp.int32),
            None if problem.gate is None else problem.zeros(*shape),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        arrays = (self.scores, self.indices, self.linear)
        return sum(nbytes(array) for array in arrays if array is not None)


def forward(
    problem: Problem, k: int, chunks: Chunks, workers: int | Executor, kept: Kept | None = None
) -> Array:
    """The output (..., Q, V); what `backward` needs is stored in `kept`, if there is one."""
    xp = problem.xp
    out = problem.zeros(*problem.out_shape, dtype=problem.query.dtype)

    with problem.crew(workers) as crew:

        def work(task: Task) -> None:
            part = problem.part(task)
            scores, indices, linear = _select(problem, part, task, k, chunks.keys, crew.scratch)
            weights = problem.activation.value(scores)
            if linear is not None:
                weights = weights * linear
            counts = _counts(xp, indices)
            placed = _place(problem, task, indices)
            piece = gather_matmul(weights, placed, counts, part.stacked("value"))
            if problem.value_bias is not None:
                piece = piece + cast(xp, problem.value_bias, problem.dtype)
            _store(task, out, cast(xp, piece, out.dtype))
            if kept is not None:
                _store(task, kept.scores, scores)
                _store(task, kept.indices, indices)
                if kept.linear is not None:
                    _store(task, kept.linear, linear)

        crew.map(work, problem.tasks(chunks.queries, chunks.heads))
    return out


def backward(
    problem: Problem, kept: Kept, dout: Array, chunks: Chunks, workers: int | Executor
) -> dict[str, Array]:
    """The gradients of the inputs by name."""
    xp = problem.xp

    def terms_of(task: Task) -> list[Addend]:
        part = problem.part(task)
        scores, indices = _load(xp, task, kept.scores), _load(xp, task, kept.indices)
        counts, placed = _counts(xp, indices), _place(problem, task, indices)
        activated = problem.activation.value(scores)
        linear = None if kept.linear is None else _load(xp, task, kept.linear)
        dpiece = cast(xp, _load(xp, task, dout), problem.dtype)
        addends: list[Addend] = []

        def add_rows(name: str, stacked: Array, start: int) -> None:
            for head, rows in zip(task.heads, task.per_head(stacked), strict=True):
                addends.append((name, head, RowsTerm(rows, start)))

        def add_scattered(name: str, weights: Array, matrix: Array) -> None:
            """Add the transposed row-sparse weights times `matrix`."""
            if len(task.heads) == 1:
                term = SparseTerm(weights, indices, counts, matrix)
                addends.append((name, task.heads[0], term))
                return
            total = problem.zeros(len(task.heads) * problem.keys, matrix.shape[1])
            add_rows(name, scatter_matmul(weights, placed, counts, matrix, total), 0)

        # 4  out = sum_j weights_ij value[indices_ij] + value_bias
        dweights = sampled_matmul(dpiece, part.stacked("value"), placed, counts)
        add_scattered("value", activated if linear is None else activated * linear, dpiece)
        if problem.value_bias is not None:
            add_rows("value_bias", xp.sum(dpiece, axis=0, keepdims=True), 0)
        # 3  weights = activation(kept), times the linear factor
        dactivated = dweights if linear is None else dweights * linear
        dscores = problem.activation.vjp(scores, activated, dactivated)
        # 1  scores, or the linear factor of a gated unit, = scale query keyᵀ + key_bias
        dproduct = dscores if linear is None else dweights * activated
        if problem.key_bias is not None:
            ones = xp.ones((dpiece.shape[0], 1), dtype=problem.dtype, device=device(dpiece))
            add_scattered("key_bias", dproduct, ones)
        dproduct = dproduct if problem.scale == 1 else dproduct * problem.scale
        add_scattered("key", dproduct, part.query)
        dquery = gather_matmul(dproduct, placed, counts, part.stacked("key"))
        if problem.gate is not None:
            add_scattered("gate", dscores, part.query)
            dquery = dquery + gather_matmul(dscores, placed, counts, part.stacked("gate"))
        add_rows("query", dquery, task.rows.start)
        return addends

    tasks = problem.tasks(chunks.backward_queries, chunks.heads)
    with problem.crew(workers) as crew:
        return sum_gradients(problem, terms_of, tasks, crew)


def _select(
    problem: Problem, part: Part, task: Task, k: int, block: int, scratch: Scratch
) -> tuple[Array, Array, Array | None]:
    """Steps 1 and 2: kept scores, their indices, and linear factors if gated, all (G C, K)."""
    xp = problem.xp
    best = KBest(k)
    seen = problem.seen(task)
    blocks = [
        slice(seen.start + some.start, seen.start + some.stop)
        for some in slices(seen.stop - seen.start, block)
    ]
    for keys in blocks or [slice(0, min(problem.keys, 1))]:
        ranks = problem.ranks(part, task, keys, scratch)
        if not problem.ranks_weights:
            best.add(ranks, keys.start)
            continue
        weights = problem.activation.value(ranks)
        linear = problem.linear(part, task, keys, scratch)
        others = [ranks] if linear is None else [ranks, linear]
        sizes = xp.abs(weights if linear is None else weights * linear)
        best.add(xp.where(ranks == -xp.inf, -xp.inf, sizes), keys.start, *others)

    scores, indices, *others = best.result(min(k, problem.keys))
    if problem.ranks_weights:
        scores = xp.where(indices < 0, -xp.inf, others[0])
    if problem.late_scale != 1:
        scores = scores * problem.late_scale
    if problem.gate is None:
        return scores, indices, None
    if problem.ranks_weights:
        return scores, indices, others[1]
    # Ranked by the gate's score, so the linear factor is needed at the kept units only.
    linear = sampled_matmul(part.query, part.stacked("key"), indices, _counts(xp, indices))
    if problem.key_bias is not None:
        bias = cast(xp, problem.key_bias[:, 0], problem.dtype)
        flat = xp.reshape(xp.where(indices < 0, 0, indices), (-1,))
        linear = linear + xp.reshape(xp.take(bias, flat), indices.shape)
    return scores, indices, linear


def _counts(xp: Namespace, indices: Array) -> Array:
    """(G C,) int32: the slots of each row that are in use."""
    return xp.sum(xp.astype(indices >= 0, xp.int32), axis=1, dtype=xp.int32)


def _place(problem: Problem, task: Task, indices: Array) -> Array:
    """Indices into the stacked matrices of all heads, from indices into each head's own."""
    if len(task.heads) == 1:
        return indices
    xp = problem.xp
    rows = xp.arange(indices.shape[0], dtype=xp.int32, device=device(indices))
    first = rows // (indices.shape[0] // len(task.heads)) * problem.keys
    return xp.where(indices < 0, indices, indices + first[:, None])


def _store(task: Task, array: Array, stacked: Array) -> None:
    """Store rows, one head after the other, where a task's queries are in `array` (..., Q, ·)."""
    for head, rows in zip(task.heads, task.per_head(stacked), strict=True):
        array[(*head, task.rows, slice(None))] = rows


def _load(xp: Namespace, task: Task, array: Array) -> Array:
    """The rows of a task's queries in `array` (..., Q, ·), one head after the other."""
    rows = [array[(*head, task.rows, slice(None))] for head in task.heads]
    return rows[0] if len(rows) == 1 else xp.concat(rows, axis=0)
