"""The graph: which blocks are worked on, and how their results come together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
from dask import delayed

from topk_np._namespace import check_integer
from topk_np.dask import blocks
from topk_np.dask.grid import Grid, meeting, total, tree
from topk_np.dask.inputs import (
    blocks_of_pairs,
    check_array,
    check_inputs,
    check_mask,
    chunked_alike,
    stand_in,
)
from topk_np.options.check import attention_call
from topk_np.options.masks import check_window


class AttentionGrads(NamedTuple):
    """Gradients of `topk_attention`, chunked as its inputs are."""

    query: da.Array
    key: da.Array
    value: da.Array


@dataclass(frozen=True)
class Residuals:
    """
    The inputs, and K scores and K indices a query, for `topk_attention_bwd`.

    All are lazy: gradients that are computed later than the output compute the forward pass again,
    unless ``residuals.persist()`` has been called.
    """

    query: da.Array
    key: da.Array
    value: da.Array
    scores: da.Array
    """(..., Q, K), -inf in unused slots."""
    indices: da.Array
    """(..., Q, K) int64, ascending; -1 in unused slots."""
    scale: float
    softcap: float | None
    meets: np.ndarray[Any, Any]
    """False for the blocks of queries and of keys that causality or a window hides altogether."""

    def persist(self) -> Residuals:
        """The same with scores and indices computed, and held by the workers."""
        scores, indices = dask.persist(self.scores, self.indices)
        return replace(self, scores=scores, indices=indices)


def topk_attention(query: da.Array, key: da.Array, value: da.Array, /, **options: Any) -> da.Array:
    """
    Attention of each query to its `k` best keys, over Dask arrays in blocks of queries and keys.

    Each block of queries meets each block of keys in a task of its own, which finds the k best of
    that block; those of all blocks are merged in a tree. Any key may so lie on any machine, and
    none holds more than a few blocks.

    Parameters
    ----------
    query : dask array (..., Q, D)
        Of NumPy blocks, float16, float32 or float64; chunks along any axis but the last count.
    key : dask array (..., N, D)
        With the leading axes of `query`: nothing is broadcast.
    value : dask array (..., N, V)
        Is chunked like `key`.
    k : int
        Keys to keep for each query, at least 1. Among equal scores the lower index is kept.
    mask : boolean array, optional
        Broadcastable to (..., Q, N), of Dask or NumPy; True where a query may attend to a key.
    is_causal, query_offset, window, scale, softcap : optional
        As in `topk_np.topk_attention`, with an integer `query_offset`.

    Returns
    -------
    dask array (..., Q, V)
        Lazy, chunked like `query`, in its dtype.

    Raises
    ------
    TypeError
        If an input is not a Dask array of floating numbers, dtypes differ, or an option has the
        wrong type.
    ValueError
        If shapes do not fit or are not known, an option is out of its range, or `query_offset` is
        missing.

    See Also
    --------
    topk_np.topk_attention : on one machine, with all options.

    Notes
    -----
    The tasks are those of `topk_np.topk_attention`: O(Q N D) work in all. What travels between
    workers are blocks of the inputs and O(Q k) scores and indices for each block of keys. Results
    are those of one machine to rounding, and the same every time. Dropout, biases, `p` and
    `always_keep` are not offered here.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from topk_np.dask import topk_attention
    >>> key = da.from_array(np.eye(4), chunks=(2, 4))
    >>> value = da.from_array(np.arange(8.0).reshape(4, 2), chunks=(2, 2))
    >>> topk_attention(5 * key[:1], key, value, k=1).compute()
    array([[0., 1.]])
    """
    return topk_attention_fwd(query, key, value, **options)[0]


def topk_attention_fwd(
    query: da.Array,
    key: da.Array,
    value: da.Array,
    /,
    *,
    k: int,
    mask: Any = None,
    is_causal: bool = False,
    query_offset: int | None = None,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[da.Array, Residuals]:
    """
    `topk_attention`, and what its backward pass needs.

    Parameters and errors are those of `topk_attention`.

    Returns
    -------
    out : dask array (..., Q, V)
        What `topk_attention` returns.
    residuals : Residuals
        Scores and indices of the kept keys.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from topk_np.dask import topk_attention_fwd
    >>> key = da.from_array(np.eye(4), chunks=(2, 4))
    >>> out, residuals = topk_attention_fwd(5 * key[:1], key, key, k=2)
    >>> residuals.indices.compute()
    array([[0, 1]])
    """
    check_inputs(query, key, value)
    mask = None if mask is None else check_mask(mask)
    offset = None if query_offset is None else check_integer("query_offset", query_offset)
    call = attention_call(
        *(stand_in(array) for array in (query, key, value)),
        mask=None if mask is None else stand_in(mask),
        is_causal=is_causal,
        query_offset=offset,
        window=window,
        scale=scale,
        softcap=softcap,
    )
    slots = min(check_integer("k", k, least=1), key.shape[-2])
    offset = offset or 0
    left, right = (None, None) if window is None else check_window(window)
    how = {"is_causal": is_causal, "window": window, "scale": call.scale, "softcap": softcap}
    query, key, value = chunked_alike(query, key, value)
    masks = None if mask is None else blocks_of_pairs(mask, query, key)
    inputs = Grid.of(query), Grid.of(key), Grid.of(value)
    meets = meeting(inputs[0], inputs[1], offset, left, 0 if is_causal else right)

    def best(place: tuple[int, ...], i: int) -> Any:
        """The merged best keys of one block of queries."""
        parts = [
            delayed(blocks.best_of)(
                inputs[0].block(place, i),
                inputs[1].block(place, j),
                None if masks is None else masks[(*place, i, j)],
                first,
                slots,
                {**how, "query_offset": offset + inputs[0].starts[i] - first},
            )
            for j, first in inputs[1].those(meets[i])
        ]
        return tree(delayed(blocks.merge), parts)

    dtype = np.result_type(query.dtype, np.float32)
    kept = inputs[0].map(best)
    residuals = Residuals(
        query,
        key,
        value,
        inputs[0].assemble({at: one[0] for at, one in kept.items()}, (slots,), dtype),
        inputs[0].assemble({at: one[1] for at, one in kept.items()}, (slots,), np.int64),
        call.scale,
        softcap,
        meets,
    )

    def out(place: tuple[int, ...], i: int) -> Any:
        weights = delayed(blocks.weights_of)(kept[(*place, i)])
        parts = [
            delayed(blocks.gather)(weights, kept[(*place, i)], inputs[2].block(place, j), first)
            for j, first in inputs[2].those(meets[i])
        ]
        return total(parts, query.dtype)

    return inputs[0].assemble(inputs[0].map(out), value.shape[-1:], query.dtype), residuals


def topk_attention_bwd(residuals: Residuals, dout: da.Array, /) -> AttentionGrads:
    """
    Gradients of `topk_attention`.

    Parameters
    ----------
    residuals : Residuals
        From `topk_attention_fwd`.
    dout : dask array (..., Q, V)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    AttentionGrads
        Gradients of query, key and value; lazy. Compute them together: they share work.

    Raises
    ------
    TypeError
        If `residuals` is not from `topk_attention_fwd`, or `dout` is no Dask array of the output's
        dtype.
    ValueError
        If the shape of `dout` is not the output's.

    Notes
    -----
    Time is O(Q k (D + V)) for each block of keys, at most; nothing of size Q x N is computed.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from topk_np.dask import topk_attention_bwd, topk_attention_fwd
    >>> key = da.from_array(np.eye(4), chunks=(2, 4))
    >>> out, residuals = topk_attention_fwd(5 * key[:1], key, key, k=1)
    >>> topk_attention_bwd(residuals, da.ones_like(out)).value[:, 0].compute()
    array([1., 0., 0., 0.])
    """
    if not isinstance(residuals, Residuals):
        raise TypeError(
            "residuals must come from topk_np.dask.topk_attention_fwd, "
            f"got {type(residuals).__name__}"
        )
    query, key, value = residuals.query, residuals.key, residuals.value
    meets = residuals.meets
    check_array("dout", dout)
    if dout.dtype != query.dtype:
        raise TypeError(f"dout must have the dtype of the output, {query.dtype}, got {dout.dtype}")
    wanted = (*query.shape[:-1], value.shape[-1])
    if dout.shape != wanted:
        raise ValueError(f"dout must have the output's shape {wanted}, got {dout.shape}")
    dout = dout.rechunk((*query.chunks[:-1], -1))
    on_queries, on_keys = Grid.of(query), Grid.of(key)
    values, douts = Grid.of(value), Grid.of(dout)
    scores, indices = Grid.of(residuals.scores), Grid.of(residuals.indices)

    best = on_queries.map(
        lambda place, i: delayed(blocks.Best)(scores.block(place, i), indices.block(place, i))
    )
    weights = {at: delayed(blocks.weights_of)(one) for at, one in best.items()}

    def dscores(place: tuple[int, ...], i: int) -> Any:
        at = (*place, i)
        parts = [
            delayed(blocks.sample)(douts.block(place, i), values.block(place, j), best[at], first)
            for j, first in values.those(meets[i])
        ]
        slopes = delayed(blocks.scores_vjp)(best[at], weights[at], total(parts), residuals.softcap)
        return slopes * residuals.scale

    slopes = on_queries.map(dscores)

    def dquery(place: tuple[int, ...], i: int) -> Any:
        at = (*place, i)
        parts = [
            delayed(blocks.gather)(slopes[at], best[at], on_keys.block(place, j), first)
            for j, first in on_keys.those(meets[i])
        ]
        return total(parts, query.dtype)

    def scattered(matrices: dict[tuple[int, ...], Any], rows: Grid) -> Callable[..., Any]:
        """The gradient that a block of keys gets from all queries."""

        def of_keys(place: tuple[int, ...], j: int) -> Any:
            span = on_keys.starts[j], on_keys.sizes[j]
            parts = [
                delayed(blocks.scatter)(
                    matrices[(*place, i)], best[(*place, i)], rows.block(place, i), *span
                )
                for i, _ in on_queries.those(meets[:, j])
            ]
            return total(parts, query.dtype)

        return of_keys

    return AttentionGrads(
        on_queries.assemble(on_queries.map(dquery), query.shape[-1:], query.dtype),
        on_keys.assemble(on_keys.map(scattered(slopes, on_queries)), key.shape[-1:], key.dtype),
        on_keys.assemble(on_keys.map(scattered(weights, douts)), value.shape[-1:], value.dtype),
    )
