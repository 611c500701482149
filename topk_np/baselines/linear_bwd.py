"""
The backward pass of `topk_np.baselines.linear`, for one heads.

It walks the blocks backward, with the gradient of the state in hand: what the later queries ask of
the keys up to here. The states themselves are summed up once more on the way there, and one is kept
for each block; undoing a sum by subtraction would lose digits, and cannot undo a gate.
"""

from __future__ import annotations

from topk_np._namespace import Array, cast, put
from topk_np.baselines.linear import Keys, LinearHeads, Read, State, smallest_gate


def backward(heads: LinearHeads, dout: Array) -> dict[str, Array]:
    """
    The gradients of the heads' matrices by name, from that of their output (G, Q, V).

    They are in the dtype that is computed in; that of the gate is 0 where there is none.
    """
    xp, gated = heads.xp, heads.gate is not None
    blocks, states, state = list(heads.blocks()), [], heads.start()
    for queries, rows in blocks:
        needed = gated or queries.stop > queries.start
        states.append(state if needed else State(heads.zeros(0, 0), state.top))
        state = heads.advance(state, heads.keys(rows))

    grads = {
        "query": heads.zeros(*heads.query.shape),
        "key": heads.zeros(*heads.key.shape),
        "value": heads.zeros(*heads.value.shape),
        "gate": heads.zeros(*heads.key.shape[:-1], 1),
    }
    top, dsums = state.top, xp.zeros_like(state.sums)
    for (queries, rows), state in zip(reversed(blocks), reversed(states), strict=True):
        keys = heads.keys(rows)
        # 4 sums after = carried * sums + transpose(weights * phi) @ values
        weights, carried = heads.factor(keys.logs, top), heads.factor(state.top, top)
        dphi = weights * ((keys.share * keys.values) @ xp.matrix_transpose(dsums))
        dvalues = weights * (keys.phi @ dsums)
        dlogs = (
            _forgotten_later(heads, keys, carried * state.sums, dsums, dvalues) if gated else None
        )
        top, dsums = state.top, carried * dsums
        if queries.stop > queries.start:
            query, phi = heads.queries(queries)
            read = heads.read(phi, queries, keys, rows, state)
            # 3 out = numerators / denominator
            dread = _divided_bwd(heads, read, cast(xp, dout[..., queries, :], heads.dtype))
            # 2 read = (products * factors) @ values + past * (phi @ sums)
            dproducts = read.factors * (dread @ xp.matrix_transpose(keys.share * keys.values))
            dvalues = dvalues + xp.matrix_transpose(read.products * read.factors) @ dread
            dpast = read.past * dread
            if gated:
                dlogs = dlogs + _forgotten_here(heads, read, dproducts, dpast, phi @ state.sums)
            dsums = dsums + xp.matrix_transpose(phi) @ dpast
            # 1 products = phi(query) @ transpose(phi(key))
            dphi = dphi + xp.matrix_transpose(dproducts) @ phi
            dfeatures = dproducts @ keys.phi + dpast @ xp.matrix_transpose(state.sums)
            dquery = heads.query_map.bwd(query, phi, dfeatures)
            grads["query"] = put(grads["query"], (..., queries, slice(None)), dquery)
        own = {
            "key": heads.key_map.bwd(keys.rows, keys.phi, dphi),
            "value": (keys.share * dvalues)[..., :-1],
        }
        if gated:
            gate = xp.maximum(keys.gate, xp.full_like(keys.gate, smallest_gate(xp, heads.dtype)))
            dshare = xp.sum(keys.values * dvalues, axis=-1, keepdims=True)
            own["gate"] = xp.matrix_transpose(dlogs) / gate - dshare
        for name, grad in own.items():
            grad = xp.where(keys.allowed, grad, xp.zeros_like(grad))
            grads[name] = put(grads[name], (..., rows, slice(None)), grad)
    return grads


def _divided_bwd(heads: LinearHeads, read: Read, dout: Array) -> Array:
    """The gradient of the sums (G, C, V + 1); none of a denominator too small to be divided by."""
    xp = heads.xp
    out, below = heads.divided(read.sums)
    dbelow = -xp.sum(dout * out, axis=-1, keepdims=True) / below
    dbelow = xp.where(read.sums[..., -1:] < heads.least, xp.zeros_like(dbelow), dbelow)
    dsums = xp.concat([dout / below, dbelow], axis=-1)
    # A query that sees no key has sums of 0: its gradient, divided by the least, may overflow.
    return xp.where(read.sums[..., -1:] == 0, xp.zeros_like(dsums), dsums)


def _forgotten_later(
    heads: LinearHeads, keys: Keys, carried: Array, dsums: Array, dvalues: Array
) -> Array:
    """
    The gradient (G, 1, n) of the gates' logarithms by what queries after the block read.

    A gate multiplies all weights between a key before it and a query at or after it, so that its
    logarithm's gradient is the sum of weight times gradient over these pairs. Here those with the
    keys before the block, and with those of the block that come before the gate.
    """
    xp = heads.xp
    pairs = xp.sum(keys.share * keys.values * dvalues, axis=-1, keepdims=True)
    within = xp.matrix_transpose(pairs) @ _earlier(heads, keys.phi.shape[-2])
    return within + xp.sum(carried * dsums, axis=(-2, -1), keepdims=True)


def _forgotten_here(
    heads: LinearHeads, read: Read, dproducts: Array, dpast: Array, past: Array
) -> Array:
    """The same by what the queries of the block read."""
    xp = heads.xp
    pairs = (read.products * dproducts) @ _earlier(heads, read.products.shape[-1])
    pairs = pairs + xp.sum(dpast * past, axis=-1, keepdims=True)
    return xp.sum(xp.where(read.seen, pairs, xp.zeros_like(pairs)), axis=-2, keepdims=True)


def _earlier(heads: LinearHeads, count: int) -> Array:
    """(n, n): 1 where the row's key comes before the column's."""
    return heads.xp.triu(heads.zeros(count, count) + 1, k=1)
