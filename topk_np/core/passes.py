"""
The top-k function, forward and backward, once for attention and the feed-forward layer alike.

For a chunk, C queries of each of G heads::

    1  scores  = softcap(scale query keyᵀ) + bias      (G, C, n), for one block of keys at a time
    2  kept, indices = the k largest of each row       (G, C, K), merged block by block
    3  weights = activation(kept)                      a gated unit: times its linear factor
    4  out     = sum_j weights_ij value[indices_ij]    dropout on the weights; plus value_bias

The backward pass walks the same steps from the bottom up and never makes anything of size C x N.
Steps 1 and 2 are those of Gupta et al. 2021, section 2; products with what is kept are row-sparse.
"""

from __future__ import annotations

from concurrent.futures import Executor

from array_api_compat import device

from topk_np._namespace import Array, cast
from topk_np.activations import logsumexp
from topk_np.core.keep import NOTHING, Kept, keep
from topk_np.core.scores import inputs_of, output_of
from topk_np.options.call import Call
from topk_np.options.chunk import Chunk, Output
from topk_np.schedule.gradients import Gradients, sum_gradients
from topk_np.schedule.plan import Schedule
from topk_np.schedule.threads import WorkerTeam


def forward(
    call: Call,
    schedule: Schedule,
    workers: int | Executor,
    lse: Output | None = None,
    keeping: bool = False,
) -> tuple[Array, Kept]:
    """
    The output (*batch, Q, V), and if `keeping` what `backward` needs, (*batch, Q, K).

    If given, `lse` (*batch, Q, 1) gets the log-sum-exp of the kept scores.
    """
    xp, ops = call.xp, call.ops
    out = output_of(call, call.value.shape[-1], call.query.dtype)
    kept: list[Output] = []
    if keeping:
        kept = [output_of(call, call.slots), output_of(call, call.slots, xp.int32)]
        kept += [output_of(call, call.slots)] if call.gate is not None else []
    with WorkerTeam(schedule.threads(workers)) as team:

        def compute(chunk: Chunk) -> None:
            inputs = inputs_of(call, chunk)
            # 1, 2
            mine = keep(call, chunk, inputs, schedule.key_block, team.scratch)
            # 3
            weights = call.activation.value(mine.scores, ops)  # (G, C, K)
            if mine.linear is not None:
                weights = weights * mine.linear
            for option in call.options:
                factors = option.factors(chunk, mine.indices, call.dtype)
                weights = weights if factors is None else weights * factors
            # 4
            pattern = ops.pattern(mine.indices, call.keys)
            piece = ops.gather_matmul(weights, pattern, inputs.value)  # (G, C, V)
            if call.value_bias is not None:
                piece = piece + cast(xp, call.value_bias, call.dtype)
            out.put(chunk, cast(xp, piece, call.query.dtype))
            for whole, part in zip(kept, mine, strict=False):
                whole.put(chunk, part)
            if lse is not None:
                lse.put(chunk, logsumexp(mine.scores))

        team.map(compute, schedule.chunks)
    return out.array, Kept(*(whole.array for whole in kept)) if keeping else NOTHING


def backward(
    call: Call,
    schedule: Schedule,
    workers: int | Executor,
    residuals: Kept,
    dout: Array,
    dlse: Array | None = None,
) -> dict[str, Array]:
    """The gradients of the inputs by name, from those of the output and of the log-sum-exp."""
    xp, ops = call.xp, call.ops

    def contribute(chunk: Chunk, grads: Gradients) -> None:
        query, key, value, gate = inputs_of(call, chunk)
        kept, indices, linear = (
            None if whole is None else chunk.stack(whole)[:, chunk.rows, :] for whole in residuals
        )
        pattern = ops.pattern(indices, call.keys)
        activated = weights = call.activation.value(kept, ops)  # (G, C, K)
        dpiece = cast(xp, chunk.stack(dout)[:, chunk.rows, :], call.dtype)  # (G, C, V)

        # 4  out = sum_j weights_ij value[indices_ij] + value_bias
        dweights = ops.sampled_matmul(dpiece, value, pattern)
        if linear is not None:
            weights = weights * linear
        for option in call.options:
            factors = option.factors(chunk, indices, call.dtype)
            if factors is not None:
                weights, dweights = weights * factors, dweights * factors
        grads.scatter("value", weights, indices, pattern, dpiece)
        if call.value_bias is not None:
            grads.add_rows("value_bias", 0, xp.sum(dpiece, axis=1, keepdims=True))
        # 3  weights = activation(kept), times the linear factor
        dactivated = dweights if linear is None else dweights * linear
        dkept = call.activation.vjp(kept, activated, dactivated, ops)
        if dlse is not None:
            drows = cast(xp, chunk.stack(dlse)[:, chunk.rows, :], call.dtype)
            dkept = dkept + activated * drows
        # 1  scores = softcap(scale query keyᵀ) + bias; of a feed-forward layer query keyᵀ +
        #    key_bias, which with a gate is the linear factor
        for option in call.options:
            option.add_gradients(grads, chunk, dkept, indices, ops)
        dproduct = dkept if linear is None else dweights * activated
        if call.softcap is not None:
            product = ops.sampled_matmul(query, key, pattern)
            dproduct = dproduct * (1 - xp.tanh(product * (call.scale / call.softcap)) ** 2)
        if call.key_bias is not None:
            ones = xp.ones((*query.shape[:2], 1), dtype=call.dtype, device=device(query))
            grads.scatter("key_bias", dproduct, indices, pattern, ones)
        dproduct = dproduct if call.scale == 1 else dproduct * call.scale
        grads.scatter("key", dproduct, indices, pattern, query)
        dquery = ops.gather_matmul(dproduct, pattern, key)
        if gate is not None:
            grads.scatter("gate", dkept, indices, pattern, query)
            dquery = dquery + ops.gather_matmul(dkept, pattern, gate)
        grads.add_rows("query", chunk.rows.start, dquery)

    with WorkerTeam(schedule.threads(workers)) as team:
        return sum_gradients(call, contribute, schedule.backward_chunks, team)
