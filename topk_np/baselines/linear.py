"""
Attention whose weights are products of features, in time and memory linear in length.

    weight_ij = gates_ij phi(q_i) . phi(k_j)    for keys j at or before the query's position
    out_i = sum_j weight_ij value_j / sum_j weight_ij

The positions are taken in blocks. Within a block the weights are a small matrix; all keys before
the block have been summed up in a `State`, phi(k_j) (value_j, 1), from which every query reads its
sums. The column of ones makes the denominator. Without causality all queries come after all keys.
Katharopoulos et al. 2020, section 3.3, arXiv:2006.16236, here with logarithms of factors (`Keys`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from array_api_compat import device

from topk_np._namespace import Array, Namespace, cast, cumulative_sum
from topk_np.baselines.features import FeatureMap


class Gate(NamedTuple):
    """The gate of each key, by which the sums so far are multiplied."""

    values: Array
    """(N, 1): from 0 to 1."""
    logs: Array
    """(N, 1) float64: the logarithm of the product of all gates so far."""


class Keys(NamedTuple):
    """Some keys with their values; what is masked has rows of zeros and the logarithm -inf."""

    rows: Array
    """(n, D)"""
    allowed: Array
    """(n, 1) bool"""
    phi: Array
    """(n, F)"""
    logs: Array
    """(n, 1): what phi is to be multiplied by; NaN if the key or value is not finite."""
    values: Array
    """(n, V + 1): the values and a column of ones."""
    gate: Array | None
    """(n, 1)"""

    @property
    def share(self) -> Array | float:
        """(n, 1): what the gate lets in of the values."""
        return 1.0 if self.gate is None else 1 - self.gate


class State(NamedTuple):
    """The sums over all keys so far, relative to the largest factor among them."""

    sums: Array
    """(F, V + 1): the sum over keys j of exp(logs_j - top) phi_j values_j."""
    top: Array
    """(1, 1): the largest of the logs, -inf before the first key."""


class Read(NamedTuple):
    """The sums that the queries of a block read."""

    seen: Array
    """(C, n) bool: by position."""
    products: Array
    """(C, n): phi(q_i) . phi(k_j)."""
    factors: Array
    """(C, n): exp(logs_j - top_i), where top_i is the largest of the logs that query i sees."""
    past: Array
    """(C, 1): the same for the state."""
    sums: Array
    """(C, V + 1): numerators and denominator."""


@dataclass(frozen=True)
class LinearHeads:
    """The matrices of G heads, and how they are worked on; all have G as another, first axis."""

    xp: Namespace
    dtype: Any
    """What is computed in."""
    query: Array
    """(Q, D)"""
    key: Array
    """(N, D)"""
    value: Array
    """(N, V)"""
    usable: Array
    """(N, 1) bool"""
    allowed: Array
    """(N, 1) bool"""
    gate: Gate | None
    first: int
    """The position of the first query."""
    query_map: FeatureMap
    key_map: FeatureMap
    least: float
    """The smallest denominator that is divided by."""
    block: int
    """Positions in a block."""

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """The queries and the keys of each block of positions, up to the last query's."""
        queries, keys = self.query.shape[-2], self.key.shape[-2]
        first = min(self.first, keys)  # a query sees all keys from there as well
        for start in range(min(0, first), first + queries, self.block):
            stop = min(start + self.block, first + queries)
            yield (
                slice(max(start - first, 0), max(stop - first, 0)),
                slice(min(max(start, 0), keys), min(max(stop, 0), keys)),
            )

    def queries(self, rows: slice) -> tuple[Array, Array]:
        """Some queries, and their features: a factor of a query has no effect."""
        query = cast(self.xp, self.query[..., rows, :], self.dtype)
        return query, self.query_map.features(query)[0]

    def keys(self, rows: slice) -> Keys:
        """Some keys, with masked ones taken out."""
        xp, usable = self.xp, self.usable[..., rows, :]

        def clean(array: Array) -> Array:
            chosen = cast(xp, array[..., rows, :], self.dtype)
            return xp.where(usable, chosen, xp.zeros_like(chosen))

        key, values = clean(self.key), clean(self.value)
        phi, logs = self.key_map.features(key)
        values = xp.concat([values, xp.ones_like(phi[..., :1])], axis=-1)
        gate = None
        if self.gate is not None:
            gate = clean(self.gate.values)
            logs = xp.astype(logs, xp.float64) - self.gate.logs[..., rows, :]
        allowed = self.allowed[..., rows, :]
        masked, broken = xp.full_like(logs, -xp.inf), xp.full_like(logs, xp.nan)
        logs = xp.where(usable, logs, xp.where(allowed, broken, masked))
        return Keys(key, allowed, phi, logs, values, gate)

    def start(self) -> State:
        """The state before the first key."""
        heads, _, width = self.key.shape
        count = self.query_map.features(self.zeros(1, width))[0].shape[-1]
        dtype = self.dtype if self.gate is None else self.xp.float64
        top = self.xp.full((heads, 1, 1), -self.xp.inf, dtype=dtype, device=device(self.query))
        return State(self.zeros(heads, count, self.value.shape[-1] + 1), top)

    def advance(self, state: State, keys: Keys) -> State:
        """The state after some more keys."""
        if keys.phi.shape[-2] == 0:
            return state
        top = self.xp.maximum(state.top, self.xp.max(keys.logs, axis=-2, keepdims=True))
        carried = self.factor(state.top, top) * state.sums
        weighted = self.factor(keys.logs, top) * keys.phi
        added = self.xp.matrix_transpose(weighted) @ (keys.share * keys.values)
        return State(carried + added, top)

    def read(self, phi: Array, queries: slice, keys: Keys, rows: slice, state: State) -> Read:
        """Read the sums for queries: from the state, and from the keys of their own block."""
        xp, first = self.xp, min(self.first, self.key.shape[-2])
        place = xp.arange(queries.start + first, queries.stop + first, device=device(phi))
        seen = place[:, None] >= xp.arange(rows.start, rows.stop, device=device(phi))[None, :]
        hidden = xp.full_like(state.top, -xp.inf)
        own = xp.where(seen, xp.matrix_transpose(keys.logs), hidden)
        logs = xp.concat([xp.broadcast_to(state.top, (*phi.shape[:-1], 1)), own], axis=-1)
        factors = self.factor(logs, xp.max(logs, axis=-1, keepdims=True))
        past, factors = factors[..., :1], factors[..., 1:]
        products = phi @ xp.matrix_transpose(keys.phi)
        sums = (products * factors) @ (keys.share * keys.values) + past * (phi @ state.sums)
        return Read(seen, products, factors, past, sums)

    def factor(self, logs: Array, top: Array) -> Array:
        """``exp(logs - top)``; 0 where the largest, top, is -inf."""
        xp = self.xp
        top = xp.where(top == -xp.inf, xp.zeros_like(top), top)
        return xp.exp(cast(xp, logs - top, self.dtype))

    def divided(self, sums: Array) -> tuple[Array, Array]:
        """The output (C, V) from sums, and the denominators (C, 1)."""
        below = sums[..., -1:]
        below = self.xp.maximum(below, self.xp.full_like(below, self.least))
        return sums[..., :-1] / below, below

    def zeros(self, *shape: int) -> Array:
        """In the dtype that is computed in."""
        return self.xp.zeros(shape, dtype=self.dtype, device=device(self.query))


def make_heads(
    xp: Namespace,
    dtype: Any,
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | None,
    gate: Array | None,
    **how: Any,
) -> LinearHeads:
    """Heads from their matrices; `allowed` and `gate` are (G, N, 1)."""
    if allowed is None:
        allowed = xp.ones((*key.shape[:-1], 1), dtype=xp.bool, device=device(key))
    usable, made = allowed, None
    for array in (key, value, gate):
        if array is not None:
            usable = usable & xp.all(xp.isfinite(array), axis=-1, keepdims=True)
    if gate is not None:
        gates = xp.astype(gate, xp.float64)
        gates = xp.where(usable, gates, xp.ones_like(gates))  # what is masked forgets nothing
        gates = xp.maximum(gates, xp.full_like(gates, smallest_gate(xp, dtype)))
        made = Gate(gate, cumulative_sum(xp, xp.log(gates)[..., 0])[..., None])
    return LinearHeads(xp, dtype, query, key, value, usable, allowed, made, **how)


def smallest_gate(xp: Namespace, dtype: Any) -> float:
    """The number that a gate of 0 counts as, so that a gradient can be divided by it."""
    return 1e-150 if dtype == xp.float64 else 1e-30


def forward(heads: LinearHeads) -> Iterator[tuple[slice, Array]]:
    """The output (G, C, V) of each block of queries."""
    state = heads.start()
    for queries, rows in heads.blocks():
        keys = heads.keys(rows)
        if queries.stop > queries.start:
            _, phi = heads.queries(queries)
            yield queries, heads.divided(heads.read(phi, queries, keys, rows, state).sums)[0]
        state = heads.advance(state, keys)
