"""What top-k attention keeps of dense attention, measured."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Unpack

from topk_np._namespace import (
    Array,
    Filled,
    cast,
    check_integer,
    check_number,
    cumulative_sum,
    is_numpy,
)
from topk_np.activations import softmax
from topk_np.attention import TopKAttentionResiduals
from topk_np.chunking import DEFAULT_MEMORY_BUDGET, plan_dense_chunk
from topk_np.inputs import attention_problem
from topk_np.options import AttentionOptions, spell_out
from topk_np.problem import Problem, Task
from topk_np.selection import select
from topk_np.workers import check_workers


@spell_out
def kept_mass(
    query: Array,
    key: Array,
    /,
    *,
    k: int | list[int] | tuple[int, ...],
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
    **options: Unpack[AttentionOptions],
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
    **options, chunk_size, memory_budget, workers
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
    problem = attention_problem(query, key, key, **options)
    xp = problem.xp
    out = Filled(problem.zeros(len(ks), *problem.batch, problem.queries))

    def measure(task: Task, scores: Array) -> None:
        (head,), rows = task
        weights = softmax(scores)
        # softmax keeps the order of the scores, so the largest weights are those of the kept keys
        best = xp.flip(xp.sort(select(weights, max(ks)).values, axis=1), axis=1)
        for i, one in enumerate(ks):
            out[(i, *head, rows)] = xp.sum(best[:, : min(one, best.shape[1])], axis=1)

    _each_chunk(problem, measure, chunk_size, memory_budget, workers)
    return out.array if given is k else out.array[0, ...]


@spell_out
def error_bound(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    k: int,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
    **options: Unpack[AttentionOptions],
) -> Array:
    """
    How far top-k attention can be from dense attention at most, for each query.

    Parameters
    ----------
    query : array (..., Q, D)
        As in `topk_attention`, as all that follow.
    key : array (..., N, D)
    value : array (..., N, V)
    k : int
        Keys kept for each query.
    **options, chunk_size, memory_budget, workers
        As in `topk_attention`.

    Returns
    -------
    array (..., Q)
        ``2 (1 - mass) max ||value_j||`` with `kept_mass` and the largest Euclidean norm over the
        keys that the query may attend to; 0 where there are none, NaN where attention is. In the
        dtype that attention computes in; the Euclidean distance of the outputs is at most this, but
        for rounding.

    Raises
    ------
    TypeError, ValueError
        As `topk_attention`.

    Notes
    -----
    Proof. Let w be the dense weights, S the kept keys and m > 0 their mass, the sum of w over S.
    Top-k attention gives the kept keys the weights w_j / m, so

        dense - topk = sum_{j in S} w_j (1 - 1 / m) v_j + sum_{j not in S} w_j v_j.

    The sizes of the first sum's weights add up to m (1 / m - 1) = 1 - m, and those of the second to
    1 - m, which by the triangle inequality gives 2 (1 - m) max ||v_j||.

    Cost as `kept_mass`. The bound is reached where what is kept and what is not point in opposite
    directions.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.diagnostics import error_bound
    >>> error_bound(np.zeros((1, 2)), np.ones((2, 2)), np.array([[3.0], [-3.0]]), k=1)
    array([3.])
    """
    k = check_integer("k", k, least=1)
    problem = attention_problem(query, key, value, **options)
    xp = problem.xp
    out = Filled(problem.zeros(*problem.batch, problem.queries))

    def measure(task: Task, scores: Array) -> None:
        (head,), rows = task
        if scores.shape[1] == 0:
            return
        (matrix,) = problem.part(task).matrices["value"]
        matrix = cast(xp, matrix[problem.seen(task), :], problem.dtype)
        norms = xp.linalg.vector_norm(matrix, axis=1)[None, :]
        allowed = scores != -xp.inf
        rest = 1 - xp.sum(select(softmax(scores), k).values, axis=1)
        rest = xp.where((rest < 0) | ~xp.any(allowed, axis=1), 0.0, rest)  # rounding, or no keys
        out[(*head, rows)] = 2 * rest * xp.max(xp.where(allowed, norms, 0.0), axis=1)

    _each_chunk(problem, measure, chunk_size, memory_budget, workers)
    return out.array


@spell_out
def keys_for_mass(
    query: Array,
    key: Array,
    /,
    *,
    mass: float,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
    **options: Unpack[AttentionOptions],
) -> Array:
    """
    The smallest `k` with which each query keeps the wanted share of its softmax weights.

    Parameters
    ----------
    query : array (..., Q, D)
        As in `topk_attention`.
    key : array (..., N, D)
        As in `topk_attention`.
    mass : float
        The wanted share, above 0 and at most 1.
    **options, chunk_size, memory_budget, workers
        As in `topk_attention`.

    Returns
    -------
    int64 array (..., Q)
        At most the number of keys that the query may attend to, 0 where there are none; -1 where
        attention is NaN.

    Raises
    ------
    TypeError, ValueError
        As `topk_attention`; a `mass` out of range is a `ValueError`.

    Notes
    -----
    Time as dense attention's scores and a sort of each row; memory as `kept_mass`.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.diagnostics import keys_for_mass
    >>> keys_for_mass(np.zeros((1, 2)), np.ones((4, 2)), mass=0.6)
    array([3])
    """
    mass = check_number("mass", mass)
    if not 0 < mass <= 1:
        raise ValueError(f"mass must be above 0 and at most 1, got {mass}")
    problem = attention_problem(query, key, key, **options)
    xp = problem.xp
    out = Filled(problem.zeros(*problem.batch, problem.queries, dtype=xp.int64))

    def measure(task: Task, scores: Array) -> None:
        (head,), rows = task
        weights = softmax(scores)
        falling = xp.flip(xp.sort(weights, axis=1), axis=1)
        sums = cumulative_sum(xp, falling)
        short = xp.sum(xp.astype(sums < mass, xp.int64), axis=1)
        allowed = xp.sum(xp.astype(scores != -xp.inf, xp.int64), axis=1)
        fewest = xp.where(short < allowed, short + 1, allowed)  # sums may end just below 1
        out[(*head, rows)] = xp.where(xp.any(xp.isnan(weights), axis=1), -1, fewest)

    _each_chunk(problem, measure, chunk_size, memory_budget, workers)
    return out.array


def attention_csr(residuals: TopKAttentionResiduals, /, *, head: tuple[int, ...] = ()) -> Any:
    """
    The attention matrix of one head as a SciPy sparse array, for looking at.

    Parameters
    ----------
    residuals : TopKAttentionResiduals
        From `topk_attention_fwd` on NumPy arrays.
    head : tuple of int, default ()
        Which head: one index for each of the leading axes.

    Returns
    -------
    scipy.sparse.csr_array (Q, N)
        The weights of the kept keys: each row adds up to 1, or is empty.

    Raises
    ------
    TypeError
        If `residuals` is something else, or of another array library.
    ValueError
        If `head` has not one index for each of the leading axes.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_attention_fwd
    >>> from topk_np.diagnostics import attention_csr
    >>> key = np.eye(3)
    >>> _, residuals = topk_attention_fwd(key, key, key, k=1)
    >>> attention_csr(residuals).toarray()
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]])
    """
    if not isinstance(residuals, TopKAttentionResiduals):
        raise TypeError(
            f"residuals must come from topk_attention_fwd, got {type(residuals).__name__}"
        )
    problem = residuals.problem
    if not is_numpy(problem.xp):
        raise TypeError(f"residuals must be of NumPy arrays, got {problem.xp.__name__}")
    if len(head) != len(problem.batch):
        raise ValueError(f"head must be a place in the leading axes {problem.batch}, got {head}")
    from scipy.sparse import csr_array

    indices, scores = residuals.indices[head], residuals.scores[head]
    used = indices >= 0
    ends = problem.xp.cumsum(used.sum(axis=1))
    starts = problem.xp.concatenate([[0], ends])
    shape = problem.queries, problem.keys
    return csr_array((softmax(scores)[used], indices[used], starts), shape=shape)


def _each_chunk(
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
