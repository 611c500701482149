"""Step 2: the keys that the queries of a chunk keep, found a block of keys at a time."""

from __future__ import annotations

from typing import NamedTuple

from topk_np._namespace import Array, cast
from topk_np.core.scores import Inputs, linear_of, scores_of, visible
from topk_np.options.call import Call
from topk_np.options.chunk import Chunk
from topk_np.options.rules import SetAside, Share, in_slot_order
from topk_np.schedule.plan import slices


class Kept(NamedTuple):
    """The keys that queries keep: of a chunk (G, C, K), or of a call (*batch, Q, K)."""

    scores: Array
    """Input of the activation; -inf in unused slots."""
    indices: Array
    """int32, ascending; -1 in unused slots, which come last."""
    linear: Array | None = None
    """Linear factors of gated units."""


NOTHING = Kept(None, None)
"""Nothing kept, where there is no backward pass."""


def keep(call: Call, chunk: Chunk, inputs: Inputs, block: int, scratch: dict[str, Array]) -> Kept:
    """The best keys of each query of a chunk, from the scores of `block` keys at a time."""
    assert call.rule is not None
    xp, ops, rule = call.xp, call.ops, call.rule
    # p = 1 keeps all, even if the rounded share never reaches 1.
    share = None
    if rule.p is not None and rule.p < 1 and call.keys > 0:
        share = Share(ops, xp, rule.p)
    always = None if call.always is None else SetAside(call.always, ops, chunk, inputs.query)
    seen = visible(call, chunk)
    best = ops.RunningTopK(rule.k, seen.stop - seen.start)
    blocks = [
        slice(seen.start + part.start, seen.start + part.stop)
        for part in slices(seen.stop - seen.start, block)
    ]
    for keys in blocks or [slice(0, min(call.keys, 1))]:
        scores = scores_of(call, chunk, inputs, keys, scratch)  # (G, C, n)
        if share is not None:
            share.add(scores)
        if always is not None:
            scores = always.take(scores, keys)
        if call.ranks_weights:
            best.add(*_by_weight(call, inputs, keys, scores, scratch))
        else:
            best.add(scores, keys.start)
    kept, indices, *others = best.result(min(rule.k, call.keys))  # (G, C, K)

    if call.ranks_weights:
        kept = xp.where(indices < 0, -xp.inf, others[0])
    if call.gate is not None:
        linear = others[1] if call.ranks_weights else _linear_at(call, inputs, indices)
        return Kept(kept, indices, linear)
    if share is not None:
        held = 0.0 if always is None else share.weights(always.scores)
        kept, indices = share.fewest(kept, indices, held)
    if always is not None:
        kept = xp.concat([kept, always.scores], axis=2)
        indices = xp.concat([indices, always.indices], axis=2)
    if share is not None or always is not None:
        kept, indices = in_slot_order(xp, kept, indices, call.slots)
    return Kept(kept, indices)


def _by_weight(
    call: Call, inputs: Inputs, keys: slice, scores: Array, scratch: dict[str, Array]
) -> tuple[Array, int, Array] | tuple[Array, int, Array, Array]:
    """Rank units by the size of their weights: these, then what is kept of the units."""
    xp = call.xp
    weights = call.activation.value(scores, call.ops)
    linear = linear_of(call, inputs, keys, scratch)
    sizes = xp.abs(weights if linear is None else weights * linear)
    sizes = xp.where(scores == -xp.inf, -xp.inf, sizes)
    return (sizes, keys.start, scores, *([] if linear is None else [linear]))


def _linear_at(call: Call, inputs: Inputs, indices: Array) -> Array:
    """The linear factors of kept units, which were ranked by the gate's score alone."""
    xp, ops = call.xp, call.ops
    pattern = ops.pattern(indices, call.keys)
    linear = ops.sampled_matmul(inputs.query, inputs.key, pattern)
    if call.key_bias is None:
        return linear
    bias = cast(xp, call.key_bias[0, :, 0], call.dtype)
    flat = xp.reshape(xp.where(indices < 0, 0, indices), (-1,))
    return linear + xp.reshape(xp.take(bias, flat), indices.shape)
