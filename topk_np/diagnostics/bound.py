"""A bound on the distance of top-k attention from dense attention."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Unpack

from topk_np._namespace import Array, cast, check_integer
from topk_np.activations import softmax
from topk_np.core.scores import output_of, visible
from topk_np.diagnostics.chunks import each_chunk, set_aside
from topk_np.options.check import AttentionOptions, attention_call, spell_out
from topk_np.options.chunk import Chunk


@spell_out(AttentionOptions)
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
    Bound the distance of top-k attention from dense attention, for each query.

    Parameters
    ----------
    query : array (..., Q, D)
        As in `topk_attention`, as all that follow.
    key : array (..., N, D)
    value : array (..., N, V)
    k : int
        Keys kept for each query, beside those of `always_keep`.
    **options, chunk_size, memory_budget, workers
        As in `topk_attention`; `dropout` is ignored.

    Returns
    -------
    array (..., Q)
        ``2 (1 - mass) max ||value_j||`` with `kept_mass` and the largest Euclidean norm over the
        keys that the query may attend to; 0 where there are none, NaN where attention is. In the
        dtype that attention computes in; the Euclidean distance of the outputs without dropout is
        at most this, but for rounding.

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
    call = attention_call(query, key, value, **options)
    xp = call.xp
    out = output_of(call, 1)

    def measure(chunk: Chunk, scores: Array) -> None:
        if scores.shape[2] == 0:
            return
        matrix = chunk.stack(call.value)[:, visible(call, chunk), :]
        norms = xp.linalg.vector_norm(cast(xp, matrix, call.dtype), axis=2)[:, None, :]
        allowed = scores != -xp.inf
        held, others = set_aside(call, chunk, softmax(scores, call.ops))
        rest = 1 - (held + xp.sum(call.ops.select(others, k).values, axis=2))
        rest = xp.where((rest < 0) | ~xp.any(allowed, axis=2), 0.0, rest)  # rounding, or no keys
        bound = 2 * rest * xp.max(xp.where(allowed, norms, 0.0), axis=2)
        out.put(chunk, bound[..., None])

    each_chunk(call, measure, chunk_size, memory_budget, workers)
    return call.batch.unfold(xp, out.array)[..., 0]
