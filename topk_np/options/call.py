"""A call of one of the functions: its inputs and options, checked. Data alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from topk_np._namespace import Array, Namespace, array_namespace
from topk_np.activations import Activation
from topk_np.kernels import Engine, engine
from topk_np.options.chunk import Batch, Option
from topk_np.options.rules import AlwaysKept, KeepRule


@dataclass(frozen=True, eq=False, kw_only=True)
class Call:
    """
    The inputs and options of ``activation(softcap(scale query keyᵀ) + bias) value``.

    All arrays are the caller's memory, never written to, with the same number of batch axes: one
    that heads share has length 1. For a feed-forward layer query, key and value are tokens, rows
    of the input matrix and rows of the output matrix.
    """

    xp: Namespace = field(repr=False)
    """The library of the arrays."""
    ops: Engine = field(repr=False)
    """The engine that computes on them."""
    dtype: Any
    """The computing dtype; outputs have the inputs' own."""
    query: Array
    """(*batch, Q, D)"""
    key: Array
    """(*batch, N, D)"""
    value: Array
    """(*batch, N, V)"""
    batch: Batch
    queries: int
    """Q, the number of queries of a head."""
    keys: int
    """N, the number of keys of a head."""
    slots: int
    """K, the most keys that a query keeps."""
    inputs: dict[str, Array] = field(repr=False)
    """The arrays that have a gradient, by name; those not given are left out."""
    shapes: dict[str, tuple[int, ...]]
    """Original shapes of those that the caller gave in another shape."""
    activation: Activation
    rule: KeepRule | None
    """The number of keys that a query keeps; None for all of them, the dense function."""
    scale: float = 1.0
    softcap: float | None = None
    """A limit c: the scaled product x becomes c tanh(x / c), before the bias."""
    options: tuple[Option, ...] = ()
    """In the order in which they work on scores: the bias, then masks."""
    always: AlwaysKept | None = None
    gate: Array | None = None
    """(1, N, D). With a gate the weights are activation(query gateᵀ) * (query keyᵀ + key_bias)."""
    key_bias: Array | None = None
    """(1, N, 1)"""
    value_bias: Array | None = None
    """(1, 1, V)"""
    ranks_weights: bool = False
    """True if the k best are the largest weights by size, not the largest scores."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the modules, which cannot be pickled."""
        return {name: value for name, value in vars(self).items() if name not in ("xp", "ops")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Find the library and the engine of the arrays again."""
        xp = array_namespace(state["query"])
        vars(self).update(state, xp=xp, ops=engine(xp))
