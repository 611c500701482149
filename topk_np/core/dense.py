"""
The dense function, forward and backward, in plain products: the oracle.

Each chunk of queries is independent of the others. The backward pass keeps nothing of the forward
pass: it makes the scores of a chunk again (the paper's query chunking, section 2.1).
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import NamedTuple

from array_api_compat import device

from topk_np._namespace import Array, cast
from topk_np.activations import logsumexp
from topk_np.core.scores import Inputs, inputs_of, linear_of, output_of, scores_of, visible
from topk_np.options.call import Call
from topk_np.options.chunk import Chunk, Output
from topk_np.schedule.gradients import Gradients, sum_gradients
from topk_np.schedule.plan import Schedule
from topk_np.schedule.threads import WorkerTeam


class _Weighed(NamedTuple):
    """The forward pass of a chunk up to its weights, for the n keys that its queries see."""

    keys: slice
    inputs: Inputs
    """Keys, values and gate of these keys alone, in the dtype that is computed in."""
    scores: Array
    """(G, C, n), as all that follow; -inf where a pair is not allowed."""
    activated: Array
    linear: Array | None
    """The linear factor of gated units."""
    factors: Array | None
    """Factors of the weights: those of dropout."""
    weights: Array
    """Finite where a pair is not allowed."""


def forward(
    call: Call, schedule: Schedule, workers: int | Executor, lse: Output | None = None
) -> Array:
    """The output (*batch, Q, V); `lse` (*batch, Q, 1), if given, gets the log-sum-exp of scores."""
    out = output_of(call, call.value.shape[-1], call.query.dtype)

    with WorkerTeam(schedule.threads(workers)) as team:

        def compute(chunk: Chunk) -> None:
            made = _weigh(call, chunk, team.scratch)
            piece = call.ops.masked_matmul(made.weights, made.scores, made.inputs.value)
            if call.value_bias is not None:
                piece = piece + cast(call.xp, call.value_bias, call.dtype)
            out.put(chunk, cast(call.xp, piece, call.query.dtype))
            if lse is not None:
                lse.put(chunk, logsumexp(made.scores))

        team.map(compute, schedule.chunks)
    return out.array


def backward(
    call: Call,
    schedule: Schedule,
    workers: int | Executor,
    dout: Array,
    dlse: Array | None = None,
) -> dict[str, Array]:
    """The gradients of the inputs by name, from those of the output and of the log-sum-exp."""
    xp, ops = call.xp, call.ops

    with WorkerTeam(schedule.threads(workers)) as team:

        def contribute(chunk: Chunk, grads: Gradients) -> None:
            made = _weigh(call, chunk, {})  # not memory that is used again: it waits to be added up
            keys, (query, key, value, gate), scores, activated, linear, factors, weights = made
            dpiece = cast(xp, chunk.stack(dout)[:, chunk.rows, :], call.dtype)

            # piece = weights value + value_bias
            dweights = ops.product(dpiece, value, 1.0, {}, "dweights")  # (G, C, n)
            dweights = ops.zero_hidden(dweights, scores)
            grads.add_product("value", keys.start, weights, scores, dpiece)
            if call.value_bias is not None:
                grads.add_rows("value_bias", 0, xp.sum(dpiece, axis=1, keepdims=True))
            if factors is not None:
                dweights = dweights * factors
            # weights = activation(scores) * linear
            dactivated = dweights if linear is None else dweights * linear
            dscores = call.activation.vjp(scores, activated, dactivated, ops)
            if dlse is not None:
                drows = cast(xp, chunk.stack(dlse)[:, chunk.rows, :], call.dtype)
                dscores = dscores + activated * drows
            dscores = ops.zero_hidden(dscores, scores)
            # scores = softcap(scale * query keyᵀ) + bias; of a feed-forward layer query keyᵀ +
            # key_bias, which with a gate is the linear factor
            for option in call.options:
                option.add_dense_gradients(grads, chunk, keys, dscores)
            dproduct = dscores
            if linear is not None:
                dproduct = ops.zero_hidden(dweights * activated, scores)
            if call.softcap is not None:
                factor = call.scale / call.softcap
                capped = xp.tanh(ops.product(query, key, factor, {}, "product"))
                dproduct = ops.zero_hidden(dproduct * (1 - capped**2), scores)
            if call.key_bias is not None:
                dbias = xp.sum(dproduct, axis=1, keepdims=True)
                grads.add_rows("key_bias", keys.start, xp.matrix_transpose(dbias))
            dproduct = dproduct if call.scale == 1 else dproduct * call.scale
            grads.add_product("key", keys.start, dproduct, scores, query)
            dquery = ops.masked_matmul(dproduct, scores, key)
            if gate is not None:
                grads.add_product("gate", keys.start, dscores, scores, query)
                dquery = dquery + ops.masked_matmul(dscores, scores, gate)
            grads.add_rows("query", chunk.rows.start, dquery)

        return sum_gradients(call, contribute, schedule.backward_chunks, team, team.threads)


def _weigh(call: Call, chunk: Chunk, scratch: dict[str, Array]) -> _Weighed:
    """Everything of a chunk's forward pass that both passes need."""
    xp, ops, keys = call.xp, call.ops, visible(call, chunk)
    inputs = inputs_of(call, chunk)
    scores = scores_of(call, chunk, inputs, keys, scratch)
    linear = linear_of(call, inputs, keys, scratch)
    activated = call.activation.value(scores, ops)
    weights = activated if linear is None else activated * linear
    factors = None
    places = xp.arange(keys.start, keys.stop, dtype=xp.int64, device=device(scores))
    for option in call.options:
        own = option.factors(chunk, places[None, None, :], call.dtype)
        if own is not None:
            factors = own if factors is None else factors * own
    if factors is not None:
        weights = weights * factors
    weights = ops.zero_hidden(weights, scores)
    matrices = (
        None if matrix is None else cast(xp, matrix[:, keys, :], call.dtype)
        for matrix in inputs[1:]
    )
    return _Weighed(
        keys, Inputs(inputs.query, *matrices), scores, activated, linear, factors, weights
    )
