"""Top-k attention, forward and backward."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple, Unpack

from topk_np import core, short
from topk_np._namespace import Array, Filled
from topk_np.chunking import Chunks, plan_chunks
from topk_np.inputs import attention_problem, check_douts
from topk_np.options import AttentionOptions, spell_out
from topk_np.problem import Problem
from topk_np.rules import Rule, make_rule
from topk_np.workers import check_workers


class AttentionGrads(NamedTuple):
    """Gradients of attention, each with the shape and dtype of its input."""

    query: Array
    key: Array
    value: Array
    bias: Array | None = None
    """In the shape of the array or the table; None without a bias, or one without a gradient."""


@dataclass(frozen=True, eq=False)
class TopKAttentionResiduals:
    """What `topk_attention_bwd` needs: the inputs, and K scores and K indices a query."""

    problem: Problem
    kept: core.Kept = field(repr=False)
    chunks: Chunks
    workers: int | Executor = field(repr=False)
    with_lse: bool = False
    """Whether the log-sum-exp was returned, and so has a gradient too."""

    @property
    def scores(self) -> Array:
        """(..., Q, K) what the softmax is taken of; -inf in unused slots."""
        return self.kept.scores.array

    @property
    def indices(self) -> Array:
        """(..., Q, K) int32, ascending; -1 in unused slots."""
        return self.kept.indices.array

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return self.kept.nbytes


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
        How many queries there are, of those with padding behind them; an array broadcasts like
        that of `query_offset`. The others see nothing.
    key_lengths : int or int array, optional
        How many keys there are, likewise; the others are seen by nobody and cost nothing.
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
        Keys kept beside the best: the first `sinks` of all, and the `local` nearest at or before
        the query's position. Those that a mask or window hides are not kept. With `p`, what they
        hold counts.
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
    problem = attention_problem(query, key, value, **options)
    rule = make_rule(k, p, max_k)
    chunks = plan_chunks(problem.sizes(rule), chunk_size, memory_budget)
    lse = problem.room_for_lse(return_lse)
    out = _forward(problem, rule, chunks, check_workers(workers), lse=lse)
    return out if lse is None else (out, lse.array[..., 0])


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
    problem = attention_problem(query, key, value, **options)
    rule = make_rule(k, p, max_k)
    chunks = plan_chunks(problem.sizes(rule), chunk_size, memory_budget)
    threads = check_workers(workers)
    lse = problem.room_for_lse(return_lse)
    kept = core.Kept.empty(problem, rule)
    out = _forward(problem, rule, chunks, threads, kept, lse)
    residuals = TopKAttentionResiduals(problem, kept, chunks, threads, return_lse)
    return (out if lse is None else (out, lse.array[..., 0])), residuals


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
    problem, kept = residuals.problem, residuals.kept
    dout, dlse = check_douts(problem, residuals.with_lse, dout)
    given = problem, kept, dout, residuals.chunks, residuals.workers, dlse
    grads = short.backward(*given) if residuals.chunks.short else None
    return attention_grads(problem, core.backward(*given) if grads is None else grads)


def _forward(
    problem: Problem,
    rule: Rule,
    chunks: Chunks,
    workers: int | Executor,
    kept: core.Kept | None = None,
    lse: Filled | None = None,
) -> Array:
    """The output, by stacks of short heads where they are short and all is finite."""
    given = problem, rule, chunks, workers, kept, lse
    out = short.forward(*given) if chunks.short else None
    return core.forward(*given) if out is None else out


def attention_grads(problem: Problem, grads: dict[str, Array]) -> AttentionGrads:
    """The gradients of a problem in the shapes of what attention was given."""
    if problem.learned_bias is not None:
        grads["bias"] = problem.learned_bias.grads(grads["bias"])
    return AttentionGrads(**grads)
