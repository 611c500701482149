"""The share of the dense softmax weights that the kept keys hold."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Unpack

from topk_np._namespace import Array, check_integer, check_number, cumulative_sum
from topk_np.activations import softmax
from topk_np.core.scores import output_of
from topk_np.diagnostics.chunks import each_chunk, set_aside
from topk_np.options.check import AttentionOptions, attention_call, spell_out
from topk_np.options.chunk import Chunk


@spell_out(AttentionOptions)
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
    The share of each query's dense softmax weights that the keys it keeps hold.

    Parameters
    ----------
    query : array (..., Q, D)
        As in `topk_attention`.
    key : array (..., N, D)
        As in `topk_attention`.
    k : int, or list or tuple of int
        Keys kept for each query, beside those of `always_keep`. Several are measured in one pass,
        at the cost of the largest.
    **options, chunk_size, memory_budget, workers
        As in `topk_attention`; `dropout` is ignored.

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
    >>> query, key = np.zeros((1, 2)), np.ones((4, 2))
    >>> kept_mass(query, key, k=[1, 2, 4])
    array([[0.25],
           [0.5 ],
           [1.  ]])
    >>> kept_mass(query, key, k=1, always_keep=(2, 0))
    array([0.75])
    """
    given = k if isinstance(k, (list, tuple)) else [k]
    ks = [check_integer("k", one, least=1) for one in given]
    if not ks:
        raise ValueError("k must be an integer or a list of at least one, got an empty one")
    call = attention_call(query, key, key, **options)
    xp = call.xp
    out = output_of(call, len(ks))

    def measure(chunk: Chunk, scores: Array) -> None:
        held, others = set_aside(call, chunk, softmax(scores, call.ops))
        # softmax keeps the order of the scores, so the largest weights are those of the kept keys
        best = xp.flip(xp.sort(call.ops.select(others, max(ks)).values, axis=2), axis=2)
        shares = [xp.sum(best[..., : min(one, best.shape[2])], axis=2) for one in ks]
        out.put(chunk, xp.stack([held + share for share in shares], axis=2))

    each_chunk(call, measure, chunk_size, memory_budget, workers)
    mass = xp.moveaxis(call.batch.unfold(xp, out.array), -1, 0)
    return mass if given is k else mass[0, ...]


@spell_out(AttentionOptions)
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
        As in `topk_attention`; `dropout` is ignored.

    Returns
    -------
    int64 array (..., Q)
        How many keys are needed beside those of `always_keep`, whose weights count: 0 where these
        hold enough, or where a query may attend to nothing; -1 where attention is NaN.

    Raises
    ------
    TypeError, ValueError
        As `topk_attention`; a `mass` out of range is a `ValueError`.

    Notes
    -----
    Time as dense attention's scores and a sort of each row; memory as `kept_mass`. Keys whose
    weight is zero by underflow are never needed.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.diagnostics import keys_for_mass
    >>> query, key = np.zeros((1, 2)), np.ones((4, 2))
    >>> keys_for_mass(query, key, mass=0.6)
    array([3])
    >>> keys_for_mass(query, key, mass=0.6, always_keep=(2, 0))
    array([1])
    """
    mass = check_number("mass", mass)
    if not 0 < mass <= 1:
        raise ValueError(f"mass must be above 0 and at most 1, got {mass}")
    call = attention_call(query, key, key, **options)
    xp = call.xp
    out = output_of(call, 1, xp.int64)

    def measure(chunk: Chunk, scores: Array) -> None:
        weights = softmax(scores, call.ops)
        held, others = set_aside(call, chunk, weights)
        falling = xp.flip(xp.sort(others, axis=2), axis=2)
        sums = held[..., None] + cumulative_sum(xp, falling)
        short = xp.sum(xp.astype(sums < mass, xp.int64), axis=2) + xp.astype(held < mass, xp.int64)
        # All sums may end just below 1; no more keys than have a weight.
        fewest = xp.minimum(short, xp.sum(xp.astype(others > 0, xp.int64), axis=2))
        fewest = xp.where(xp.any(xp.isnan(weights), axis=2), -1, fewest)
        out.put(chunk, fewest[..., None])

    each_chunk(call, measure, chunk_size, memory_budget, workers)
    return call.batch.unfold(xp, out.array)[..., 0]
