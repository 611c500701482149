"""
What both attention and the feed-forward layer compute: ``activation(scale query keyᵀ) value``.

A `Problem` is that function with its inputs checked. Everything works on one chunk of queries of
one head at a time, as plain matrices: query rows (C, D), key (N, D), value (N, V).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from array_api_compat import device

from topk_np._namespace import Array, Namespace, cast, compute_dtype, is_numpy
from topk_np.activations import Activation
from topk_np.chunking import Sizes, slices
from topk_np.kernels import engine
from topk_np.masking import Head, Mask, of_head
from topk_np.workers import Crew, Scratch

Task = tuple[Head, slice]  # some queries of one head


class Part(NamedTuple):
    """The matrices that a chunk of queries of one head needs, as the caller gave them."""

    query: Array
    """(C, D), in the computing dtype."""
    key: Array
    value: Array
    gate: Array | None = None
    key_bias: Array | None = None
    value_bias: Array | None = None


@dataclass(frozen=True)
class Problem:
    """The checked inputs of one call; arrays as the caller gave them, never written to."""

    xp: Namespace = field(repr=False)
    query: Array
    """(..., Q, D)"""
    key: Array
    """(..., N, D)"""
    value: Array
    """(..., N, V)"""
    batch: Head
    """The shape that all leading axes broadcast to."""
    activation: Activation
    scale: float = 1.0
    mask: Mask | None = None
    gate: Array | None = None
    """(N, D). With a gate the weights are activation(query gateᵀ) * (query keyᵀ + key_bias)."""
    key_bias: Array | None = None
    """(N, 1)"""
    value_bias: Array | None = None
    """(1, V)"""
    ranks_weights: bool = False
    """Whether the k best are the largest weights by size, not the largest scores."""

    @property
    def inputs(self) -> dict[str, Array]:
        """The arrays that have a gradient, by name; those not given are left out."""
        given = ((name, getattr(self, name)) for name in Part._fields)
        return {name: array for name, array in given if array is not None}

    @property
    def queries(self) -> int:
        """Q, the number of queries of a head."""
        return int(self.query.shape[-2])

    @property
    def keys(self) -> int:
        """N, the number of keys of a head."""
        return int(self.key.shape[-2])

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the output, (..., Q, V)."""
        return (*self.batch, self.queries, int(self.value.shape[-1]))

    @property
    def dtype(self) -> Any:
        """What is computed in; outputs have the inputs' own dtype."""
        return compute_dtype(self.xp, self.query)

    @property
    def late_scale(self) -> float:
        """
        The part of `scale` that the kept scores get, after selection.

        A positive factor changes no order, so ranking can do without it. It is never moved into
        the product, where it would make equal integer products differ.
        """
        return self.scale if self.scale > 0 else 1.0

    def sizes(self, k: int) -> Sizes:
        """What the plan for this problem depends on."""
        return Sizes(
            heads=len(self.heads()),
            queries=self.queries,
            keys=self.keys,
            width=int(self.query.shape[-1] + self.value.shape[-1]),
            slots=min(k, self.keys),
            itemsize=8 if self.dtype == self.xp.float64 else 4,
            narrow=self.dtype != self.query.dtype,
            score_matrices=1 + 4 * self.ranks_weights,
            masked=self.mask is not None,
            whole_rows=self.ranks_weights and not self.activation.by_element,
        )

    def zeros(self, *shape: int, dtype: Any = None) -> Array:
        """An array of zeros beside the inputs, of the computing dtype unless told otherwise."""
        dtype = self.dtype if dtype is None else dtype
        return self.xp.zeros(shape, dtype=dtype, device=device(self.query))

    def heads(self) -> list[Head]:
        """The place of every head among the leading axes."""
        return list(itertools.product(*map(range, self.batch)))

    def tasks(self, chunk: int) -> list[Task]:
        """Every chunk of queries of every head."""
        return list(itertools.product(self.heads(), slices(self.queries, chunk)))

    def part(self, head: Head, rows: slice) -> Part:
        """The matrices for some queries of one head."""
        matrices = {name: of_head(array, head) for name, array in self.inputs.items()}
        query = cast(self.xp, matrices.pop("query")[rows, :], self.dtype)
        return Part(query, **matrices)

    def ranks(
        self, part: Part, head: Head, rows: slice, keys: slice, scratch: Scratch | None = None
    ) -> Array:
        """(C, n): scores of some keys but for `late_scale`; -inf where a key is masked."""
        ranking = part.key if part.gate is None else part.gate
        scores = self._product("scores", part.query, ranking[keys, :], scratch)
        if self.late_scale != self.scale:
            scores = scores * self.scale
        if part.key_bias is not None and part.gate is None:
            scores = scores + cast(self.xp, part.key_bias[keys, :].T, self.dtype)
        if self.mask is not None:
            scores = self.mask.hide(self.xp, scores, head, rows, keys)
        return scores

    def scores(self, part: Part, head: Head, rows: slice) -> Array:
        """(C, N): what goes into the activation, of all keys; -inf where a key is masked."""
        scores = self.ranks(part, head, rows, slice(0, self.keys))
        return scores if self.late_scale == 1 else scores * self.late_scale

    def linear(self, part: Part, keys: slice, scratch: Scratch | None = None) -> Array | None:
        """(C, n): the factor beside the activation in a gated unit; None without a gate."""
        if part.gate is None:
            return None
        linear = self._product("linear", part.query, part.key[keys, :], scratch)
        if part.key_bias is not None:
            linear = linear + cast(self.xp, part.key_bias[keys, :].T, self.dtype)
        return linear

    def crew(self, workers: Any) -> Crew:
        """The threads for this problem: one where more are not worth starting."""
        scores = len(self.heads()) * self.queries * self.keys
        return Crew(workers if is_numpy(self.xp) and scores >= WORTH_THREADS else 1)

    def _product(self, name: str, rows: Array, keys: Array, scratch: Scratch | None) -> Array:
        """(C, n): ``rows keysᵀ``, in the thread's scratch where there is one."""
        keys = cast(self.xp, keys, self.dtype)
        buffer = None
        if scratch is not None and is_numpy(self.xp):
            buffer = scratch.matrix(name, rows.shape[0], keys.shape[0], self.dtype)
        return engine(self.xp).matmul(rows, keys, buffer)


WORTH_THREADS = 2**18  # scores from which threads save more than they cost
