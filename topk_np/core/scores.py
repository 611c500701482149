"""Step 1: the scores of a chunk's queries, for a block of keys at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

from topk_np._namespace import Array, cast, zeros
from topk_np.options.call import Call
from topk_np.options.chunk import Chunk, Output


class Inputs(NamedTuple):
    """The inputs of a chunk: C queries, and all keys and values, of G heads."""

    query: Array
    """(G, C, D), in the computing dtype; the others in the dtype that was given."""
    key: Array
    """(G, N, D)"""
    value: Array
    """(G, N, V)"""
    gate: Array | None
    """(G, N, D)"""


def inputs_of(call: Call, chunk: Chunk) -> Inputs:
    """The inputs of a chunk: views, except for queries of half precision."""
    return Inputs(
        cast(call.xp, chunk.stack(call.query)[:, chunk.rows, :], call.dtype),
        chunk.stack(call.key),
        chunk.stack(call.value),
        None if call.gate is None else chunk.stack(call.gate),
    )


def output_of(call: Call, width: int, dtype: Any = None) -> Output:
    """An array (*batch, Q, width) of zeros, of the computing dtype unless told otherwise."""
    dtype = call.dtype if dtype is None else dtype
    return Output(zeros(call.xp, (*call.batch.shape, call.queries, width), dtype, call.query))


def visible(call: Call, chunk: Chunk) -> slice:
    """The keys outside of which no query of the chunk may attend to any."""
    keys = slice(0, call.keys)
    for option in call.options:
        keys = option.visible(chunk, keys)
    return keys


def scores_of(
    call: Call, chunk: Chunk, inputs: Inputs, keys: slice, scratch: dict[str, Array]
) -> Array:
    """
    (G, C, n): ``softcap(scale query keyᵀ) + bias`` of some keys; -inf where one is masked.

    Of a feed-forward layer ``query keyᵀ + key_bias``, or with a gate ``query gateᵀ``.
    """
    matrix = inputs.key if inputs.gate is None else inputs.gate
    matrix = cast(call.xp, matrix[:, keys, :], call.dtype)  # (G, n, D)
    if call.softcap is None:
        scores = call.ops.product(inputs.query, matrix, call.scale, scratch, "scores")
    else:
        factor = call.scale / call.softcap
        scores = call.ops.tanh(call.ops.product(inputs.query, matrix, factor, scratch, "scores"))
        scores *= call.softcap
    if call.key_bias is not None and inputs.gate is None:
        scores += _key_bias(call, keys)
    for option in call.options:  # the bias, then masks
        scores = option.scores(scores, chunk, keys, call.ops)
    return scores


def linear_of(call: Call, inputs: Inputs, keys: slice, scratch: dict[str, Array]) -> Array | None:
    """(G, C, n): the factor ``query keyᵀ + key_bias`` of gated units; None without a gate."""
    if inputs.gate is None:
        return None
    matrix = cast(call.xp, inputs.key[:, keys, :], call.dtype)
    linear = call.ops.product(inputs.query, matrix, 1.0, scratch, "linear")
    return linear if call.key_bias is None else linear + _key_bias(call, keys)


def _key_bias(call: Call, keys: slice) -> Array:
    """The bias of some keys, (1, 1, n)."""
    assert call.key_bias is not None
    return cast(call.xp, call.xp.matrix_transpose(call.key_bias[:, keys, :]), call.dtype)
