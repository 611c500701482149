"""
What both attention and the feed-forward layer compute: ``activation(scale query keyᵀ) value``.

A `Problem` is that function with its inputs checked. Everything works on one chunk of queries of
one head at a time, as plain matrices: query rows (C, D), key (N, D), value (N, V).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from array_api_compat import device

from topk_np._namespace import Array, Namespace, cast, compute_dtype, is_numpy
from topk_np.activations import Activation
from topk_np.chunking import chunks, run
from topk_np.masking import Head, Mask, of_head


class Part(NamedTuple):
    """The matrices that one chunk of queries of one head needs, in the computing dtype."""

    query: Array
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
    """(1, N)"""
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
    def row_bytes(self) -> int:
        """Scratch that one query of a chunk needs: a few copies of its row of scores."""
        copies = 4 if self.gate is None else 6
        return copies * max(self.keys, 1) * (8 if self.dtype == self.xp.float64 else 4)

    def zeros(self, *shape: int, dtype: Any = None) -> Array:
        """An array of zeros beside the inputs, of the computing dtype unless told otherwise."""
        dtype = self.dtype if dtype is None else dtype
        return self.xp.zeros(shape, dtype=dtype, device=device(self.query))

    def part(self, head: Head, rows: slice) -> Part:
        """The matrices for some queries of one head."""
        matrices = {
            name: cast(self.xp, of_head(array, head), self.dtype)
            for name, array in self.inputs.items()
            if name != "query"
        }
        query = cast(self.xp, of_head(self.query, head)[rows, :], self.dtype)
        return Part(query, **matrices)

    def scores(self, part: Part, head: Head, rows: slice) -> Array:
        """(C, N): what goes into the activation; -inf where a key is masked."""
        if part.gate is not None:
            return part.query @ part.gate.T
        scores = part.query @ part.key.T
        if self.scale != 1:
            # After the product, so that equal integer products stay equal.
            scores = scores * self.scale
        if part.key_bias is not None:
            scores = scores + part.key_bias
        return scores if self.mask is None else self.mask.hide(self.xp, scores, head, rows)

    def linear(self, part: Part) -> Array:
        """(C, N): the factor beside the activation in a gated unit."""
        linear = part.query @ part.key.T
        return linear if part.key_bias is None else linear + part.key_bias

    def for_each_chunk(
        self, work: Callable[[Head, slice], None], chunk: int, workers: int | Executor
    ) -> None:
        """Call `work` on every chunk of queries of every head, in any order."""
        tasks = list(itertools.product(self._heads(), chunks(self.queries, chunk)))
        run(lambda task: work(*task), tasks, workers if is_numpy(self.xp) else 1)

    def sum_gradients(
        self,
        add: Callable[[dict[str, Array], Head, slice], None],
        chunk: int,
        workers: int | Executor,
    ) -> dict[str, Array]:
        """
        The gradients of the inputs by name, to which `add` adds what each chunk contributes.

        `add` gets the gradients of its head as matrices, to be changed in place. Heads that share
        an input through a broadcast axis are taken one after the other, always in one order.
        """
        sums = {name: self.zeros(*array.shape) for name, array in self.inputs.items()}

        def work(group: list[Head]) -> None:
            for head in group:
                own = {name: of_head(total, head) for name, total in sums.items()}
                for rows in chunks(self.queries, chunk):
                    add(own, head, rows)

        run(work, self._groups(), workers if is_numpy(self.xp) else 1)
        return {name: cast(self.xp, total, self.query.dtype) for name, total in sums.items()}

    def _heads(self) -> Iterator[Head]:
        return itertools.product(*map(range, self.batch))

    def _groups(self) -> list[list[Head]]:
        """The heads, in groups that share no input with each other."""
        full = [
            (1,) * (len(self.batch) + 2 - array.ndim) + array.shape
            for array in self.inputs.values()
        ]
        shared = [any(shape[axis] == 1 for shape in full) for axis in range(len(self.batch))]
        groups: dict[Head, list[Head]] = {}
        for head in self._heads():
            own = tuple(0 if together else i for i, together in zip(head, shared, strict=True))
            groups.setdefault(own, []).append(head)
        return list(groups.values())
