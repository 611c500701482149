"""Step 2: which keys the queries of a chunk keep, from their scores a block of keys at a time."""

from __future__ import annotations

from typing import NamedTuple

from array_api_compat import device

from topk_np._namespace import Array, Namespace, cast, cumulative_sum
from topk_np.core.scores import Inputs, linear_of, scores_of, visible
from topk_np.options.call import Call
from topk_np.options.chunk import Chunk
from topk_np.schedule.plan import slices


class Kept(NamedTuple):
    """What queries keep: of a chunk (G, C, K), or of a call (*batch, Q, K)."""

    scores: Array
    """What goes into the activation; -inf in unused slots."""
    indices: Array
    """int32, ascending; -1 in unused slots, which come last."""
    linear: Array | None = None
    """Linear factors of gated units."""


def keep(
    call: Call, chunk: Chunk, inputs: Inputs, block: int, scratch: dict[str, Array]
) -> Kept:
    """The best keys of each query of a chunk, from the scores of `block` keys at a time."""
    assert call.rule is not None
    xp, ops, rule = call.xp, call.ops, call.rule
    # p = 1 keeps all, even if the rounded share never reaches 1.
    share = None if rule.p in (None, 1) or call.keys == 0 else _Share(xp)
    always = None if call.always is None else _SetAside(call, chunk, inputs)
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
        kept, indices = _fewest(call, kept, indices, share.weights(kept), held)
    if always is not None:
        kept = xp.concat([kept, always.scores], axis=2)
        indices = xp.concat([indices, always.indices], axis=2)
    if share is not None or always is not None:
        kept, indices = _in_order(xp, kept, indices, call.slots)
    return Kept(kept, indices)


def _by_weight(
    call: Call, inputs: Inputs, keys: slice, scores: Array, scratch: dict[str, Array]
) -> tuple[Array, int, Array] | tuple[Array, int, Array, Array]:
    """What units are ranked by where that is what comes out of them, with what is kept of them."""
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


class _SetAside:
    """The keys that are always kept: taken out of the blocks before these are ranked."""

    def __init__(self, call: Call, chunk: Chunk, inputs: Inputs) -> None:
        assert call.always is not None
        self._xp, self._ops, self._always, self._chunk = call.xp, call.ops, call.always, chunk
        places = call.always.indices(inputs.query, chunk)
        shape = (*inputs.query.shape[:2], places.shape[2])
        self._places = call.xp.broadcast_to(places, shape)
        where = {"dtype": call.dtype, "device": device(inputs.query)}
        self.scores = call.xp.full(shape, -call.xp.inf, **where)
        """(G, C, S); -inf where a key is masked, or there is none."""

    @property
    def indices(self) -> Array:
        """(G, C, S) int32; -1 where the score is -inf."""
        xp = self._xp
        return xp.astype(xp.where(self.scores == -xp.inf, -1, self._places), xp.int32)

    def take(self, scores: Array, keys: slice) -> Array:
        """Remember the scores of those among `keys`; the others, with -inf in their place."""
        xp = self._xp
        here = (self._places >= keys.start) & (self._places < keys.stop)
        inside = xp.astype(xp.where(here, self._places - keys.start, -1), xp.int32)
        self.scores = xp.where(here, self._ops.take_slots(scores, inside), self.scores)
        return self._ops.hide(scores, ~self._always.pairs(scores, self._chunk, keys))


class _Share:
    """The softmax's denominator of each row, summed up from block to block."""

    def __init__(self, xp: Namespace) -> None:
        self._xp = xp
        self._largest: Array = None  # (G, C, 1); a row without any allowed score has -inf
        self._total: Array = None

    def add(self, scores: Array) -> None:
        """See a block of scores (G, C, n)."""
        xp = self._xp
        largest = xp.max(scores, axis=2, keepdims=True)
        if self._largest is not None:
            largest = xp.maximum(largest, self._largest)
        total = xp.sum(xp.exp(scores - self._finite(largest)), axis=2, keepdims=True)
        if self._total is not None:
            total = total + self._total * xp.exp(self._largest - self._finite(largest))
        self._largest, self._total = largest, total

    def weights(self, scores: Array) -> Array:
        """The weights of some of the scores seen."""
        xp = self._xp
        total = xp.where(self._total == 0, 1.0, self._total)
        return xp.exp(scores - self._finite(self._largest)) / total

    def _finite(self, largest: Array) -> Array:
        return self._xp.where(largest == -self._xp.inf, 0.0, largest)


def _fewest(
    call: Call, kept: Array, indices: Array, weights: Array, held: Array | float
) -> tuple[Array, Array]:
    """The largest of the scores, as few as bring what is `held` already to a share of p."""
    assert call.rule is not None
    xp, p = call.xp, call.rule.p
    order = falling(xp, kept)
    weights = xp.take_along_axis(weights, order, axis=2)
    if call.ops.DOUBLE:
        weights = xp.astype(weights, xp.float64)
    before = cumulative_sum(xp, weights) - weights
    if not isinstance(held, float):
        before = before + xp.sum(held, axis=2, keepdims=True)
    enough = (before >= p) & (before > 0)  # not with NaN, nor of the first where p is tiny
    enough = xp.take_along_axis(enough, xp.argsort(order, axis=2), axis=2)
    return xp.where(enough, -xp.inf, kept), xp.where(enough, -1, indices)


def falling(xp: Namespace, values: Array) -> Array:
    """A stable order of each row: NaN, then falling values."""
    nan = xp.isnan(values)
    order = xp.argsort(xp.where(nan, 0.0, -values), axis=-1, stable=True)
    rest = xp.astype(xp.take_along_axis(~nan, order, axis=-1), xp.int8)
    return xp.take_along_axis(order, xp.argsort(rest, axis=-1, stable=True), axis=-1)


def _in_order(xp: Namespace, kept: Array, indices: Array, slots: int) -> tuple[Array, Array]:
    """The first slots in ascending order of their index, unused ones last."""
    last = xp.iinfo(indices.dtype).max
    order = xp.argsort(xp.where(indices < 0, last, indices), axis=2, stable=True)[..., :slots]
    return tuple(xp.take_along_axis(array, order, axis=2) for array in (kept, indices))
