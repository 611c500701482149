"""Dense scores, a chunk of queries at a time, and what is always kept of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

from topk_np._namespace import Array
from topk_np.chunking import DEFAULT_MEMORY_BUDGET, plan_dense_chunk
from topk_np.problem import Problem
from topk_np.work import Task
from topk_np.workers import check_workers


def each_chunk(
    problem: Problem,
    measure: Callable[[Task, Array], None],
    chunk_size: int | None,
    memory_budget: int | None,
    workers: int | Executor | None,
) -> None:
    """Call `measure` with every chunk of queries and its scores (C, n); -inf where masked."""
    if memory_budget is None:
        memory_budget = DEFAULT_MEMORY_BUDGET
    chunk = plan_dense_chunk(problem.dense_sizes, chunk_size, memory_budget)

    def work(task: Task) -> None:
        measure(task, problem.scores(problem.part(task), task, problem.seen(task)))

    with problem.crew(check_workers(workers)) as crew:
        crew.map(work, problem.tasks(chunk))


def set_aside(problem: Problem, task: Task, weights: Array) -> tuple[Array, Array]:
    """What the keys always kept hold of weights (C, n), (C,); the weights with 0 in their place."""
    if problem.always is None:
        return problem.zeros(weights.shape[0]), weights
    xp, ((head,), rows) = problem.xp, task
    always = problem.always.pairs(weights, head, rows, problem.seen(task))
    return xp.sum(xp.where(always, weights, 0.0), axis=1), xp.where(always, 0.0, weights)
