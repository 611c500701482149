"""Dense attention, forward and backward: the oracle of `topk_np.attention`."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Unpack

from topk_np._namespace import Array
from topk_np.attention import AttentionGrads, attention_grads
from topk_np.chunking import plan_dense_chunk
from topk_np.dense import core, stacked
from topk_np.inputs import attention_problem, check_douts
from topk_np.options import AttentionOptions, spell_out
from topk_np.problem import Problem
from topk_np.workers import check_workers


@dataclass(frozen=True, eq=False)
class DenseAttentionResiduals:
    """What `dense_attention_bwd` needs: the inputs and nothing else; scores are made again."""

    problem: Problem
    chunk_size: int
    workers: int | Executor = field(repr=False)
    with_lse: bool = False
    """Whether the log-sum-exp was returned, and so has a gradient too."""
    stacked: bool = False
    """Whether short heads are taken together, as far as their numbers are finite."""

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return 0


@spell_out(AttentionOptions)
def dense_attention(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    return_lse: bool = False,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
    **options: Unpack[AttentionOptions],
) -> Array:
    """
    Attention over all keys: ``softmax(softcap(scale query keyᵀ) + bias) value``.

    The oracle of `topk_attention`, with the same options but `k`. Without `chunk_size` and
    `memory_budget` each head is one chunk of scores (Q, N), as in the textbook; with one of them
    it is the paper's query chunking, exact and linear in memory.

    Parameters
    ----------
    query : array (..., Q, D)
        float16, bfloat16, float32 or float64; half precision is computed in float32.
    key : array (..., N, D)
        Same library, device and dtype as `query`; leading axes broadcast.
    value : array (..., N, V)
        What is averaged.
    return_lse : bool, default False
        Whether to return the log-sum-exp of each query's scores as well.
    mask, is_causal, query_offset, window, query_lengths, key_lengths : optional
        Which keys a query may attend to, as in `topk_attention`.
    bias, scale, softcap, dropout : optional
        What is done to scores and weights, as in `topk_attention`.
    always_keep : (sinks, local), optional
        Changes nothing: all keys are kept.
    chunk_size : int, optional
        Queries to work on at once.
    memory_budget : int, optional
        Bytes of scratch memory, from which the chunk size follows if it is not given.
    workers : int or concurrent.futures.Executor, optional
        Threads that share the work, by default one a core.

    Returns
    -------
    array (..., Q, V), or a pair with `return_lse`
        In the dtype, library and device of the inputs; the log-sum-exp (..., Q) in the dtype that
        is computed in.

    Raises
    ------
    TypeError, ValueError
        As `topk_attention`.

    Notes
    -----
    Time is O(Q N (D + V)). Memory beyond the inputs is O(chunk_size N) a worker; half precision
    keys and values are cast whole for each worker, which `memory_budget` does not count. A masked
    key contributes nothing even if it is NaN. Query chunking: Gupta et al. 2021, section 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import dense_attention
    >>> dense_attention(np.zeros((1, 2)), np.ones((4, 2)), np.arange(4.0)[:, None])
    array([[1.5]])
    """
    out, _ = dense_attention_fwd(
        query,
        key,
        value,
        return_lse=return_lse,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
        workers=workers,
        **options,
    )
    return out


@spell_out(AttentionOptions)
def dense_attention_fwd(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    return_lse: bool = False,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Array, DenseAttentionResiduals]:
    """
    `dense_attention`, and what its backward pass needs.

    Parameters, errors and cost are those of `dense_attention`.

    Returns
    -------
    out : array (..., Q, V), or a pair with `return_lse`
        What `dense_attention` returns.
    residuals : DenseAttentionResiduals
        The inputs by reference and nothing else: the backward pass makes the scores again.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import dense_attention_fwd
    >>> out, residuals = dense_attention_fwd(*[np.ones((2, 3))] * 3)
    >>> residuals.nbytes
    0
    """
    problem = attention_problem(query, key, value, **options)
    threads = check_workers(workers)
    chunk = plan_dense_chunk(problem.dense_sizes, chunk_size, memory_budget)
    lse = problem.room_for_lse(return_lse)
    plain = lse is None and chunk_size is None and memory_budget is None
    together = plain and stacked.stacks(problem)
    out = stacked.forward(problem, threads) if together else None
    if out is None:
        out = core.forward(problem, chunk, threads, lse)
    residuals = DenseAttentionResiduals(problem, chunk, threads, return_lse, together)
    return (out if lse is None else (out, lse.array[..., 0])), residuals


def dense_attention_bwd(residuals: DenseAttentionResiduals, dout: Array, /) -> AttentionGrads:
    """
    Gradients of `dense_attention`.

    Parameters
    ----------
    residuals : DenseAttentionResiduals
        From `dense_attention_fwd`.
    dout : array (..., Q, V), or a pair
        Gradient of the loss with respect to the output, in its shape and dtype; after `return_lse`
        a pair, as in `topk_attention_bwd`.

    Returns
    -------
    AttentionGrads
        Gradients of query, key, value and bias, each in the shape of its input.

    Raises
    ------
    TypeError, ValueError
        As `topk_attention_bwd`.

    Notes
    -----
    Time is O(Q N (D + V)); memory as in the forward pass, chunk by chunk.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import dense_attention_bwd, dense_attention_fwd
    >>> out, residuals = dense_attention_fwd(*[np.ones((2, 3))] * 3)
    >>> dense_attention_bwd(residuals, np.ones_like(out)).value
    array([[1., 1., 1.],
           [1., 1., 1.]])
    """
    if not isinstance(residuals, DenseAttentionResiduals):
        raise TypeError(
            "residuals must come from dense_attention_fwd, got " + type(residuals).__name__
        )
    problem, chunk, workers = residuals.problem, residuals.chunk_size, residuals.workers
    dout, dlse = check_douts(problem, residuals.with_lse, dout)
    grads = stacked.backward(problem, dout, workers) if residuals.stacked else None
    if grads is None:
        grads = core.backward(problem, dout, chunk, workers, dlse)
    return attention_grads(problem, grads)
