"""What top-k attention keeps of dense attention, measured."""

from __future__ import annotations

from concurrent.futures import Executor

from topk_np._namespace import Array, check_integer
from topk_np.activations import softmax
from topk_np.chunking import DEFAULT_MEMORY_BUDGET, plan_dense_chunk
from topk_np.inputs import attention_problem
from topk_np.problem import Task
from topk_np.selection import select
from topk_np.workers import check_workers


def kept_mass(
    query: Array,
    key: Array,
    /,
    *,
    k: int | list[int] | tuple[int, ...],
    mask: Array | None = None,
    is_causal: bool = False,
    query_offset: int | Array | None = None,
    scale: float | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
) -> Array:
    """
    The share of each query's dense softmax weights that its `k` best keys hold.

    Parameters
    ----------
    query : array (..., Q, D)
        As in `topk_attention`.
    key : array (..., N, D)
        As in `topk_attention`.
    k : int, or list or tuple of int
        Keys kept for each query. Several are measured in one pass, at the cost of the largest.
    mask, is_causal, query_offset, scale, chunk_size, memory_budget, workers
        As in `topk_attention`.

    Returns
    -------
    array (..., Q), or (len(k), ..., Q) for several
        Between 0 and 1 but for rounding; 0 for a query that may attend to nothing, NaN where
        attention is. In the dtype that attention computes in.

    Raises
    ------
    TypeError, ValueError
        As `topk_attention`; an empty list is a `ValueError`.

    Notes
    -----
    Time as dense attention's scores; memory beyond the inputs and the output is one chunk of
    scores for each worker.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.diagnostics import kept_mass
    >>> kept_mass(np.zeros((1, 2)), np.ones((4, 2)), k=[1, 2, 4])
    array([[0.25],
           [0.5 ],
           [1.  ]])
    """
    given = k if isinstance(k, (list, tuple)) else [k]
    ks = [check_integer("k", one, least=1) for one in given]
    if not ks:
        raise ValueError("k must be an integer or a list of at least one, got an empty one")
    problem = attention_problem(query, key, key, mask, is_causal, query_offset, scale)
    if memory_budget is None:
        memory_budget = DEFAULT_MEMORY_BUDGET
    chunk = plan_dense_chunk(problem.sizes(problem.keys), chunk_size, memory_budget)
    xp = problem.xp
    out = problem.zeros(len(ks), *problem.batch, problem.queries)

    def work(task: Task) -> None:
        (head,), rows = task
        scores = problem.scores(problem.part(task), task, problem.seen(task))
        weights = softmax(scores)
        # softmax keeps the order of the scores, so the largest weights are those of the kept keys
        best = xp.flip(xp.sort(select(weights, max(ks)).values, axis=1), axis=1)
        for i, one in enumerate(ks):
            out[(i, *head, rows)] = xp.sum(best[:, : min(one, best.shape[1])], axis=1)

    with problem.crew(check_workers(workers)) as crew:
        crew.map(work, problem.tasks(chunk))
    return out if given is k else out[0, ...]
