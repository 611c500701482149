"""Dense scores, a chunk of queries at a time, and what is always kept of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

from topk_np._namespace import Array, zeros
from topk_np.core.scores import inputs_of, scores_of, visible
from topk_np.options.call import Call
from topk_np.options.chunk import Chunk
from topk_np.schedule.plan import DEFAULT_MEMORY_BUDGET, schedule_dense
from topk_np.schedule.threads import WorkerTeam, check_workers


def each_chunk(
    call: Call,
    measure: Callable[[Chunk, Array], None],
    chunk_size: int | None,
    memory_budget: int | None,
    workers: int | Executor | None,
) -> None:
    """Call `measure` with every chunk of queries and its scores (G, C, n); -inf where masked."""
    if memory_budget is None:
        memory_budget = DEFAULT_MEMORY_BUDGET
    schedule = schedule_dense(call, chunk_size, memory_budget)

    with WorkerTeam(schedule.threads(check_workers(workers))) as team:

        def work(chunk: Chunk) -> None:
            seen = visible(call, chunk)
            measure(chunk, scores_of(call, chunk, inputs_of(call, chunk), seen, team.scratch))

        team.map(work, schedule.chunks)


def set_aside(call: Call, chunk: Chunk, weights: Array) -> tuple[Array, Array]:
    """The share that the keys always kept have of weights (G, C, n), and the weights without it."""
    if call.always is None:
        return zeros(call.xp, tuple(weights.shape[:2]), call.dtype, weights), weights
    xp = call.xp
    always = call.always.pairs(weights, chunk, visible(call, chunk))
    return xp.sum(xp.where(always, weights, 0.0), axis=2), xp.where(always, 0.0, weights)
