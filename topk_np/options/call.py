"""A call of one of the functions: its inputs and options, checked. Data alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from array_api_compat import device

from topk_np._namespace import Array, Namespace, array_namespace
from topk_np.activations import Activation
from topk_np.kernels import Engine, engine
from topk_np.options.chunk import Batch, Output
from topk_np.options.option import Option
from topk_np.options.rules import AlwaysKept, KeepRule

INPUTS = ("query", "key", "value", "gate", "key_bias", "value_bias")


@dataclass(frozen=True, eq=False)
class Call:
    """
    What ``activation(softcap(scale query keyᵀ) + bias) value`` is computed of.

    All arrays are the caller's memory, never written to, with the same number of batch axes: one
    that heads share has length 1. For a feed-forward layer query, key and value are tokens, rows
    of the input matrix and rows of the output matrix.
    """

    xp: Namespace = field(repr=False)
    ops: Engine = field(repr=False)
    query: Array
    """(*batch, Q, D)"""
    key: Array
    """(*batch, N, D)"""
    value: Array
    """(*batch, N, V)"""
    batch: Batch
    dtype: Any
    """What is computed in; outputs have the inputs' own dtype."""
    shapes: dict[str, tuple[int, ...]]
    """Of query, key and value as the caller gave them."""
    activation: Activation
    rule: KeepRule | None = None
    """How many keys a query keeps; None where that is all of them: the dense function."""
    scale: float = 1.0
    softcap: float | None = None
    """With a softcap c the scaled product x becomes c tanh(x / c), before the bias."""
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
    """Whether the k best are the largest weights by size, not the largest scores."""

    @property
    def inputs(self) -> dict[str, Array]:
        """The arrays that have a gradient, by name; those not given are left out."""
        arrays = {name: getattr(self, name) for name in INPUTS}
        for option in self.options:
            arrays |= option.inputs
        return {name: array for name, array in arrays.items() if array is not None}

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the output with the caller's leading axes, (..., Q, V)."""
        return (*self.batch.lead, self.queries, int(self.value.shape[-1]))

    @property
    def queries(self) -> int:
        """Q, the number of queries of a head."""
        return int(self.query.shape[-2])

    @property
    def keys(self) -> int:
        """N, the number of keys of a head."""
        return int(self.key.shape[-2])

    @property
    def slots(self) -> int:
        """K, the most keys that a query keeps."""
        if self.rule is None:
            return self.keys
        always = 0 if self.always is None else self.always.slots
        return min(self.rule.k + always, self.keys)

    def output(self, width: int, dtype: Any = None) -> Output:
        """An array (*batch, Q, width) of zeros, of the computing dtype unless told otherwise."""
        return Output(self.zeros(*self.batch.shape, self.queries, width, dtype=dtype))

    def zeros(self, *shape: int, dtype: Any = None) -> Array:
        """An array of zeros on the inputs' device, of the computing dtype unless told otherwise."""
        dtype = self.dtype if dtype is None else dtype
        return self.xp.zeros(shape, dtype=dtype, device=device(self.query))

    def unfold(self, array: Array) -> Array:
        """An array (*batch, Q, ·) with the caller's leading axes."""
        return self.xp.reshape(array, (*self.batch.lead, *array.shape[-2:]))

    def fold(self, array: Array) -> Array:
        """An array (..., Q, ·) over all heads with the batch axes."""
        return self.batch.fold(self.xp, array)

    def __getstate__(self) -> dict[str, Any]:
        """Without modules, which cannot be pickled."""
        return {name: value for name, value in vars(self).items() if name not in ("xp", "ops")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With the library and the engine of the arrays."""
        vars(self).update(state)
        vars(self)["xp"] = array_namespace(self.query)
        vars(self)["ops"] = engine(vars(self)["xp"])
