"""
The top-k function, forward and backward, once for attention and the feed-forward layer alike.

For a chunk of C queries of one head, or of G short heads at once::

    1  scores  = softcap(scale query keyᵀ) + bias       (C, n), for one block of keys at a time
    2  kept, indices = the k largest of each row        (C, K), merged block by block
    3  weights = activation(kept)                       a gated unit: times its linear factor
    4  out     = sum_j weights_ij value[indices_ij] + value_bias        dropout on the weights

The backward pass walks the same steps from the bottom up and never makes anything of size C x N.
Steps 1 and 2 are those of Gupta et al. 2021, section 2; products with what is kept are row-sparse.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from array_api_compat import device

from topk_np._namespace import Array, Filled, Namespace, cast, nbytes
from topk_np.activations import logsumexp
from topk_np.chunking import Chunks
from topk_np.gradients import Addend, sum_gradients
from topk_np.keeping import keep, slot_counts
from topk_np.problem import Problem
from topk_np.rowsparse import gather_matmul, sampled_matmul, scatter_matmul
from topk_np.rules import Rule
from topk_np.terms import RowsTerm, SparseTerm
from topk_np.work import Part, Task


@dataclass(frozen=True)
class Kept:
    """What the forward pass keeps for the backward pass, beyond the inputs."""

    scores: Filled
    """(..., Q, K) scores of the kept keys; -inf in unused slots."""
    indices: Filled
    """(..., Q, K) int32, ascending; -1 in unused slots."""
    linear: Filled | None
    """(..., Q, K) linear factors of gated units."""

    @classmethod
    def empty(cls, problem: Problem, rule: Rule) -> Kept:
        """Room for what a problem's forward pass keeps."""
        shape = (*problem.batch, problem.queries, problem.slots(rule))
        return cls(
            Filled(problem.zeros(*shape)),
            Filled(problem.zeros(*shape, dtype=problem.xp.int32)),
            None if problem.gate is None else Filled(problem.zeros(*shape)),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        filled = (self.scores, self.indices, self.linear)
        return sum(nbytes(one.array) for one in filled if one is not None)


def forward(
    problem: Problem,
    rule: Rule,
    chunks: Chunks,
    workers: int | Executor,
    kept: Kept | None = None,
    lse: Filled | None = None,
) -> Array:
    """
    The output (..., Q, V).

    If given, `kept` gets what `backward` needs, and `lse` (..., Q, 1) the log-sum-exp of the kept
    scores.
    """
    xp = problem.xp
    out = Filled(problem.zeros(*problem.out_shape, dtype=problem.query.dtype))

    with problem.crew(workers) as crew:

        def work(task: Task) -> None:
            part = problem.part(task)
            scores, indices, linear = keep(problem, part, task, rule, chunks.keys, crew.scratch)
            weights = problem.activation.value(scores)
            if linear is not None:
                weights = weights * linear
            if problem.dropout is not None:
                weights = weights * problem.dropout_factors(task, indices)
            piece = _sum_values(problem, task, part, weights, indices)
            if problem.value_bias is not None:
                piece = piece + cast(xp, problem.value_bias, problem.dtype)
            _store(task, out, cast(xp, piece, problem.query.dtype))
            if lse is not None:
                _store(task, lse, logsumexp(scores))
            if kept is not None:
                _store(task, kept.scores, scores)
                _store(task, kept.indices, indices)
                if kept.linear is not None:
                    _store(task, kept.linear, linear)

        crew.map(work, problem.tasks(chunks.queries, chunks.heads))
    return out.array


def backward(
    problem: Problem,
    kept: Kept,
    dout: Array,
    chunks: Chunks,
    workers: int | Executor,
    dlse: Array | None = None,
) -> dict[str, Array]:
    """The gradients of the inputs by name, from those of the output and of the log-sum-exp."""
    xp = problem.xp

    def terms_of(task: Task) -> list[Addend]:
        part = problem.part(task)
        scores, indices = (_load(xp, task, filled.array) for filled in (kept.scores, kept.indices))
        counts, placed = slot_counts(xp, indices), _place(problem, task, indices)
        activated = weights = problem.activation.value(scores)
        linear = None if kept.linear is None else _load(xp, task, kept.linear.array)
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
        if linear is not None:
            weights = weights * linear
        if problem.dropout is not None:
            factors = problem.dropout_factors(task, indices)
            weights, dweights = weights * factors, dweights * factors
        add_scattered("value", weights, dpiece)
        if problem.value_bias is not None:
            add_rows("value_bias", xp.sum(dpiece, axis=0, keepdims=True), 0)
        # 3  weights = activation(kept), times the linear factor
        dactivated = dweights if linear is None else dweights * linear
        dscores = problem.activation.vjp(scores, activated, dactivated)
        if dlse is not None:
            dscores = dscores + activated * cast(xp, _load(xp, task, dlse), problem.dtype)
        # 1  scores = softcap(scale query keyᵀ) + bias; or for a feed-forward layer query keyᵀ +
        #    key_bias, which of a gated unit is the linear factor
        if problem.learned_bias is not None:
            slots = map(task.per_head, (dscores, indices, counts))
            for head, *own in zip(task.heads, *slots, strict=True):
                addends.append(
                    ("bias", head, problem.learned_bias.slots_term(head, task.rows, *own))
                )
        dproduct = dscores if linear is None else dweights * activated
        if problem.softcap is not None:
            product = sampled_matmul(part.query, part.stacked("key"), placed, counts)
            dproduct = dproduct * (1 - xp.tanh(product * (problem.scale / problem.softcap)) ** 2)
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


def _sum_values(problem: Problem, task: Task, part: Part, weights: Array, indices: Array) -> Array:
    """(G C, V): the sum over the kept slots of each row, ``weights_ij value[indices_ij]``."""
    xp = problem.xp
    counts = slot_counts(xp, indices)
    rows, slots = indices.shape
    if problem.keys * len(task.heads) <= rows * slots:
        placed = _place(problem, task, indices)
        return gather_matmul(weights, placed, counts, part.stacked("value"))
    # Few queries of many keys, as in decoding: to stack the values would copy all for a few.
    own = [*map(task.per_head, (weights, indices, counts)), part.matrices["value"]]
    pieces = [gather_matmul(*of_head) for of_head in zip(*own, strict=True)]
    return pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=0)


def _place(problem: Problem, task: Task, indices: Array) -> Array:
    """Indices into the stacked matrices of all heads, from indices into each head's own."""
    if len(task.heads) == 1:
        return indices
    xp = problem.xp
    rows = xp.arange(indices.shape[0], dtype=xp.int32, device=device(indices))
    first = rows // (indices.shape[0] // len(task.heads)) * problem.keys
    return xp.where(indices < 0, indices, indices + first[:, None])


def _store(task: Task, filled: Filled, stacked: Array) -> None:
    """Store rows, one head after the other, where a task's queries are in `filled` (..., Q, ·)."""
    for head, rows in zip(task.heads, task.per_head(stacked), strict=True):
        filled[(*head, task.rows, slice(None))] = rows


def _load(xp: Namespace, task: Task, array: Array) -> Array:
    """The rows of a task's queries in `array` (..., Q, ·), one head after the other."""
    rows = [array[(*head, task.rows, slice(None))] for head in task.heads]
    return rows[0] if len(rows) == 1 else xp.concat(rows, axis=0)
