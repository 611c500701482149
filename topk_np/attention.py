"""Attention, forward and backward: top-k, and dense as its oracle."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, NamedTuple, Unpack

from topk_np._namespace import Array, check_flag
from topk_np.core import dense, passes
from topk_np.core.residuals import Residuals, TopKResiduals
from topk_np.core.scores import output_of
from topk_np.options.call import Call
from topk_np.options.check import (
    AttentionOptions,
    attention_call,
    check_grad,
    spell_out,
)
from topk_np.options.chunk import Output
from topk_np.schedule.plan import schedule_call, schedule_dense
from topk_np.schedule.threads import check_workers


class AttentionGrads(NamedTuple):
    """Gradients of attention, each with the shape and dtype of its input."""

    query: Array
    key: Array
    value: Array
    bias: Array | None = None
    """In the shape of the array or the table; None without a bias, or one without a gradient."""


class TopKAttentionResiduals(TopKResiduals):
    """Input of `topk_attention_bwd`: the inputs, and K scores and K indices a query."""


class DenseAttentionResiduals(Residuals):
    """Input of `dense_attention_bwd`: the inputs alone; scores are computed once more."""


@spell_out(AttentionOptions)
def topk_attention(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    k: int | None = None,
    p: float | None = None,
    max_k: int | None = None,
    return_lse: bool = False,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
    **options: Unpack[AttentionOptions],
) -> Array:
    """
    Attention in which every query attends to its `k` best-scoring keys.

    Exact for what is kept: the result is that of dense attention restricted to the k keys, and
    dense attention itself where `k` covers all keys that a query may attend to.

    Parameters
    ----------
    query : array (..., Q, D)
        float16, bfloat16, float32 or float64; half precision is computed in float32.
    key : array (..., N, D)
        Same library, device and dtype as `query`. Leading axes broadcast, so grouped and
        multi-query heads are a key and value with an axis of length 1.
    value : array (..., N, V)
        What is averaged.
    k : int
        Keys to keep for each query, at least 1. Among equal scores the lower index is kept.
    p : float, optional
        Instead of `k`: keep the fewest of the best keys that hold this share of the dense softmax
        weights, above 0 and at most 1, but no more than `max_k`.
    max_k : int, optional
        The most keys that a query keeps, required with `p`.
    return_lse : bool, default False
        Whether to return the log-sum-exp of the kept scores as well, by which results over parts
        of the keys can be merged.
    mask : bool array or function, optional
        Broadcastable to (..., Q, N), True where a query may attend; or a function of query
        positions (C, 1) and key positions (1, n), integer arrays, that returns such an array for
        these pairs. It is called for each chunk of each head, from several threads. A masked key
        is never kept and contributes nothing, even if it is NaN. A query without any allowed key
        gives 0. All that masks combines.
    is_causal : bool, default False
        Whether a query attends only to keys at or before its own position.
    query_offset : int or int array, optional
        Position of the first query among the keys. An array broadcasts to the leading axes: with
        (B, H), one a batch is ``offsets[:, None]``. Required where Q and N differ and an option
        goes by position; 0 where they are equal.
    window : (left, right), optional
        The query at position i sees keys i - left to i + right only; None on a side is unbounded.
        Keys that no query of a chunk sees cost nothing.
    query_lengths : int or int array, optional
        The number of queries that are not padding, which stands behind them; an array broadcasts
        like that of `query_offset`. Padding sees nothing.
    key_lengths : int or int array, optional
        The number of keys that are not padding, likewise; padding is hidden and costs nothing.
    bias : array, ALiBi, T5Bias or function, optional
        Added to the scores. An array broadcastable to (..., Q, N), which gets a gradient, as does
        the table of a `T5Bias`; or a function of positions, as for `mask`, that returns numbers.
        A score of -inf is masked.
    scale : float, optional
        Factor of the products, by default ``1 / sqrt(D)``.
    softcap : float, optional
        A limit c to the size of the scaled products x, which become ``c tanh(x / c)``.
    dropout : (rate, seed), optional
        Drop kept weights with a probability below 1, and divide the others by 1 - rate. What is
        dropped depends on the seed and the place of the weight alone: the index over the leading
        axes, the positions of query and key.
    always_keep : (sinks, local), optional
        Keys kept in addition to the best: the first `sinks` of all, and the `local` nearest at or
        before the query's position. Those that a mask or window hides are not kept. With `p`, what
        they hold counts.
    chunk_size : int, optional
        Queries to work on at once; by default as many as `memory_budget` allows.
    memory_budget : int, optional
        Bytes of scratch memory for all workers together, by default 64 MiB.
    workers : int or concurrent.futures.Executor, optional
        Threads that share the work, by default one a core; an executor must run threads. Results
        are bit-identical for any number. Other libraries than NumPy ignore it.

    Returns
    -------
    array (..., Q, V), or a pair with `return_lse`
        In the dtype, library and device of the inputs. The second of the pair is the log-sum-exp
        (..., Q) in the dtype that is computed in, -inf for a query that keeps nothing.

    Raises
    ------
    TypeError
        If an input is not a floating array, the inputs differ in library, device or dtype, an
        option has the wrong type, neither `k` nor `p` is given, or `workers` is a process pool.
    ValueError
        If shapes do not fit, an option is out of its range, both `k` and `p` are given,
        `query_offset` is missing, or `memory_budget` is less than one query needs.

    See Also
    --------
    dense_attention : the same with every key.
    topk_attention_fwd : also returns what the backward pass needs.

    Notes
    -----
    ``scores = softcap(scale query keyᵀ) + bias``, then masks, then the selection, and dropout on
    the weights of what was kept.

    Time is O(Q N D) for the scores, as in dense attention; memory beyond the inputs is
    O(Q (k + V)) and one chunk of scores. A NaN or +inf in an allowed score makes its row NaN.
    Source: Gupta, Dar, Goodman, Ciprut and Berant, *Memory-efficient Transformers via Top-k
    Attention*, 2021, section 2, arXiv:2106.06899. (Masks there are the other way round; there is
    no dropout of attention weights.)

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_attention
    >>> key = np.eye(4)
    >>> topk_attention(5 * key[:1], key, np.arange(8.0).reshape(4, 2), k=1)
    array([[0., 1.]])
    """
    call = attention_call(query, key, value, (k, p, max_k), **options)
    schedule = schedule_call(call, chunk_size, memory_budget)
    lse = _lse(call, return_lse)
    out, _ = passes.forward(call, schedule, check_workers(workers), lse)
    return _unfolded(call, out, lse)


@spell_out(AttentionOptions)
def topk_attention_fwd(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    k: int | None = None,
    p: float | None = None,
    max_k: int | None = None,
    return_lse: bool = False,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Array, TopKAttentionResiduals]:
    """
    `topk_attention`, and what its backward pass needs.

    Parameters, errors and cost are those of `topk_attention`.

    Returns
    -------
    out : array (..., Q, V), or a pair with `return_lse`
        What `topk_attention` returns.
    residuals : TopKAttentionResiduals
        Scores and indices of the kept keys, at most K = min(k + sinks + local, N) a query: 8 K
        bytes a query in float32. The inputs are referred to, not copied.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_attention_fwd
    >>> key = np.eye(4)
    >>> out, residuals = topk_attention_fwd(5 * key[:1], key, key, k=2)
    >>> residuals.indices, residuals.scores
    (array([[0, 1]], dtype=int32), array([[2.5, 0. ]]))
    """
    call = attention_call(query, key, value, (k, p, max_k), **options)
    schedule = schedule_call(call, chunk_size, memory_budget)
    threads = check_workers(workers)
    lse = _lse(call, return_lse)
    out, kept = passes.forward(call, schedule, threads, lse, keeping=True)
    lead = (*call.batch.lead, call.queries)
    residuals = TopKAttentionResiduals(call, schedule, threads, lead, return_lse, kept)
    return _unfolded(call, out, lse), residuals


def topk_attention_bwd(residuals: TopKAttentionResiduals, dout: Array, /) -> AttentionGrads:
    """
    Gradients of `topk_attention`.

    A key that a query did not keep gets exactly no gradient from it.

    Parameters
    ----------
    residuals : TopKAttentionResiduals
        From `topk_attention_fwd`.
    dout : array (..., Q, V), or a pair
        Gradient of the loss with respect to the output, in its shape and dtype; after `return_lse`
        a pair: also the gradient (..., Q) with respect to the log-sum-exp.

    Returns
    -------
    AttentionGrads
        Gradients of query, key, value and bias, each in the shape of its input: where an axis was
        broadcast, the sum over it. None for a bias that is absent or has no gradient.

    Raises
    ------
    TypeError
        If `residuals` is not from `topk_attention_fwd`, or `dout` has another library, device or
        dtype than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Notes
    -----
    Time is O(Q k (D + V)): nothing of size Q x N is computed, not even for one chunk.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_attention_bwd, topk_attention_fwd
    >>> key = np.eye(4)
    >>> out, residuals = topk_attention_fwd(5 * key[:1], key, key, k=1)
    >>> topk_attention_bwd(residuals, np.ones_like(out)).value[:, 0]
    array([1., 0., 0., 0.])
    """
    if not isinstance(residuals, TopKAttentionResiduals):
        raise TypeError(
            "residuals must come from topk_attention_fwd, got " + type(residuals).__name__
        )
    call, schedule = residuals.call, residuals.schedule
    dout, dlse = _check_douts(residuals, dout)
    workers = check_workers(residuals.workers)
    return _grads(call, passes.backward(call, schedule, workers, residuals.kept, dout, dlse))


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

    The oracle of `topk_attention`, with the same options except `k`. Without `chunk_size` and
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
        The inputs by reference and nothing else: the backward pass computes the scores once more.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import dense_attention_fwd
    >>> out, residuals = dense_attention_fwd(*[np.ones((2, 3))] * 3)
    >>> residuals.nbytes
    0
    """
    call = attention_call(query, key, value, **options)
    schedule = schedule_dense(call, chunk_size, memory_budget)
    threads = check_workers(workers)
    lse = _lse(call, return_lse)
    out = dense.forward(call, schedule, threads, lse)
    lead = (*call.batch.lead, call.queries)
    return _unfolded(call, out, lse), DenseAttentionResiduals(
        call, schedule, threads, lead, return_lse
    )


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
    call, schedule = residuals.call, residuals.schedule
    dout, dlse = _check_douts(residuals, dout)
    workers = check_workers(residuals.workers)
    return _grads(call, dense.backward(call, schedule, workers, dout, dlse))


def _lse(call: Call, wanted: Any) -> Output | None:
    """Room for the log-sum-exp of each query's scores, if that is wanted."""
    return output_of(call, 1) if check_flag("return_lse", wanted) else None


def _unfolded(call: Call, out: Array, lse: Output | None) -> Any:
    """The output with the caller's leading axes, in a pair with the log-sum-exp if there is one."""
    lead = (*call.batch.lead, call.queries)
    out = call.xp.reshape(out, (*lead, out.shape[-1]))
    return out if lse is None else (out, call.xp.reshape(lse.array, lead))


def _check_douts(residuals: Residuals, dout: Any) -> tuple[Array, Array | None]:
    """Check the gradient of the output, in a pair with that of the log-sum-exp if there is one."""
    call, lead = residuals.call, residuals.lead
    shape, fold = (*lead, int(call.value.shape[-1])), call.batch.fold
    given = call.query, shape, call.query.dtype
    if not residuals.with_lse:
        return fold(call.xp, check_grad("dout", "the output", *given, dout)), None
    if not isinstance(dout, (tuple, list)) or len(dout) != 2:
        got = len(dout) if isinstance(dout, (tuple, list)) else type(dout).__name__
        raise TypeError(f"dout must be a pair (dout, dlse) after return_lse=True, got {got}")
    dlse = check_grad("dlse", "lse", call.query, lead, call.dtype, dout[1])
    dout = check_grad("dout", "the output", *given, dout[0])
    return fold(call.xp, dout), fold(call.xp, dlse[..., None])


def _grads(call: Call, grads: dict[str, Array]) -> AttentionGrads:
    """The gradients in the shapes of what attention was given."""
    for name, shape in call.shapes.items():
        grads[name] = call.xp.reshape(grads[name], shape)
    for option in call.options:
        if option.gradient:
            grads[option.gradient] = option.own_gradient(grads[option.gradient])
    return AttentionGrads(**grads)
