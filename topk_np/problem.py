"""
What both attention and the feed-forward layer compute: ``activation(scale query keyᵀ) value``.

A `Problem` is that function with its inputs and options checked. What makes scores of them works on
one task at a time.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from array_api_compat import device

from topk_np._namespace import (
    Array,
    Filled,
    Namespace,
    cast,
    check_flag,
    compute_dtype,
    is_cupy,
    is_numpy,
)
from topk_np.activations import ACTIVATIONS, Activation
from topk_np.bias import ArrayBias, Bias, FunctionBias
from topk_np.chunking import WORTH_THREADS, Sizes, slices
from topk_np.dropout import Dropout
from topk_np.kernels import engine, is_portable
from topk_np.masking import Mask
from topk_np.positions import Head, Positions, column, of_head
from topk_np.relative import TableBias
from topk_np.rules import AlwaysKept, Rule
from topk_np.work import Part, Task, each_head
from topk_np.workers import Crew, Scratch

INPUTS = ("query", "key", "value", "gate", "key_bias", "value_bias")


LEAST_LATE_SCALE = 1e-30  # times -inf it is -inf in every dtype, not NaN


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
    positions: Positions = field(default_factory=Positions)
    mask: Mask | None = None
    bias: Bias | None = None
    softcap: float | None = None
    """With a softcap c the scaled product x becomes c tanh(x / c), before the bias."""
    dropout: Dropout | None = None
    always: AlwaysKept | None = None
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
        named = {name: getattr(self, name) for name in INPUTS}
        named["bias"] = None if self.learned_bias is None else self.learned_bias.array
        return {name: array for name, array in named.items() if array is not None}

    @property
    def learned_bias(self) -> ArrayBias | TableBias | None:
        """The bias, if it has a gradient."""
        return self.bias if isinstance(self.bias, (ArrayBias, TableBias)) else None

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

    @cached_property
    def dtype(self) -> Any:
        """What is computed in; outputs have the inputs' own dtype."""
        return compute_dtype(self.xp, self.query)

    @property
    def late_scale(self) -> float:
        """
        The part of `scale` that the kept scores get, after selection.

        A positive factor changes no order, so ranking can do without it; one of at most 1 makes
        nothing infinite, and so masks nothing. It is never moved into the product, where it would
        make equal integer products differ. What comes after the scale leaves it no choice.
        """
        late = self.bias is None and self.softcap is None
        return self.scale if late and LEAST_LATE_SCALE <= self.scale <= 1 else 1.0

    def slots(self, rule: Rule) -> int:
        """K, how many keys a query keeps at most."""
        always = 0 if self.always is None else self.always.slots
        return min(rule.most + always, self.keys)

    def sizes(self, rule: Rule) -> Sizes:
        """What the plan for this problem depends on."""
        for_scores = max(
            3 if isinstance(self.bias, FunctionBias) else 0,  # perhaps 64-bit integers, and cast
            2 if rule.p is not None else 0,  # the exponentials of all scores
        )
        for_slots = max(
            2 if rule.p is not None or self.always is not None else 0,  # put in order once more
            8 if self.dropout is not None else 0,  # random bits
            8 if isinstance(self.bias, TableBias) else 0,  # buckets
        )
        narrow = self.dtype != self.query.dtype
        return Sizes(
            heads=math.prod(self.batch),
            queries=self.queries,
            keys=self.keys,
            width=int(self.query.shape[-1] + self.value.shape[-1]),
            slots=self.slots(rule),
            itemsize=8 if self.dtype == self.xp.float64 else 4,
            narrow=narrow,
            copied=narrow or not _fits_blas(self.key, self.gate),
            score_matrices=1 + 4 * self.ranks_weights + for_scores,
            slot_matrices=for_slots,
            held_matrices=int(self.learned_bias is not None),
            masked=self.mask is not None or self.always is not None,
            whole_rows=self.ranks_weights and not self.activation.by_element,
            on_device=is_cupy(self.xp),
            stackable=self._stackable(rule),
        )

    @property
    def plain(self) -> bool:
        """Whether this is attention without any option that goes head by head."""
        mask = self.mask
        others = (self.bias, self.softcap, self.dropout, self.key_bias, self.value_bias)
        return (
            self.activation is ACTIVATIONS["softmax"]
            and self.gate is None
            and all(other is None for other in others)
            and (mask is None or mask.pairs is None)
            and isinstance(self.positions.offset, int)
        )

    def _stackable(self, rule: Rule) -> bool:
        """Whether short heads can be worked on by `topk_np.short`."""
        narrow = self.dtype != self.query.dtype
        return (
            is_numpy(self.xp)
            and not is_portable(self.xp)
            and rule.p is None
            and self.always is None
            and self.plain
            # The sums of what is shared would all be wide at once.
            and not (narrow and any(a.shape[:-2] != self.batch for a in self.inputs.values()))
        )

    @property
    def dense_sizes(self) -> Sizes:
        """What the plan for the dense function depends on."""
        return self.sizes(Rule(max(self.keys, 1)))

    def zeros(self, *shape: int, dtype: Any = None) -> Array:
        """An array of zeros beside the inputs, of the computing dtype unless told otherwise."""
        dtype = self.dtype if dtype is None else dtype
        return self.xp.zeros(shape, dtype=dtype, device=device(self.query))

    def room_for_lse(self, wanted: Any) -> Filled | None:
        """(..., Q, 1) for the log-sum-exp of each query's scores, if that is wanted."""
        if not check_flag("return_lse", wanted):
            return None
        return Filled(self.zeros(*self.out_shape[:-1], 1))

    def heads(self) -> list[Head]:
        """The place of every head among the leading axes."""
        return list(itertools.product(*map(range, self.batch)))

    def tasks(self, chunk: int, heads: int = 1) -> list[Task]:
        """Every chunk of queries of every so many heads."""
        every = self.heads()
        packs = [tuple(every[pack]) for pack in slices(len(every), heads)]
        return [Task(*task) for task in itertools.product(packs, slices(self.queries, chunk))]

    def part(self, task: Task) -> Part:
        """The matrices for a task."""
        matrices = {
            name: [of_head(array, head) for head in task.heads]
            for name, array in self.inputs.items()
        }
        rows = [cast(self.xp, query[task.rows, :], self.dtype) for query in matrices.pop("query")]
        return Part(rows[0] if len(rows) == 1 else self.xp.concat(rows, axis=0), matrices)

    def seen(self, task: Task) -> slice:
        """The keys outside of which no query of the task may attend to any."""
        if self.mask is None:
            return slice(0, self.keys)
        seen = [self.mask.visible(head, task.rows, self.keys) for head in task.heads]
        return slice(min(keys.start for keys in seen), max(keys.stop for keys in seen))

    def seen_by_all(self, task: Task) -> slice:
        """Keys that every query of the task may attend to, unless it may attend to none."""
        if self.mask is None:
            return slice(0, self.keys)
        seen = [self.mask.visible_to_all(head, task.rows, self.keys) for head in task.heads]
        return slice(max(keys.start for keys in seen), min(keys.stop for keys in seen))

    def ranks(self, part: Part, task: Task, keys: slice, scratch: Scratch | None = None) -> Array:
        """(G C, n): scores of some keys but for `late_scale`; -inf where a key is masked."""
        gated = self.gate is not None
        scores = self._product("gate" if gated else "key", part, task, keys, scratch)
        if self.softcap is not None:
            scores *= self.scale / self.softcap
            scores = engine(self.xp).tanh(scores)
            scores *= self.softcap
        elif self.late_scale != self.scale:
            scores *= self.scale
        if self.key_bias is not None and not gated:
            scores += self._key_bias(part, keys)

        def finish(i: int, own: Array) -> Array:
            head = task.heads[i]
            if self.bias is not None:
                bias = self.bias.values(own, head, task.rows, keys)
                own += cast(self.xp, bias, self.dtype)
            if self.mask is not None:
                own = self.mask.hide(self.xp, own, head, task.rows, keys)
            return own

        return each_head(task, scores, finish)

    def scores(self, part: Part, task: Task, keys: slice) -> Array:
        """(G C, n): what goes into the activation, of some keys; -inf where one is masked."""
        scores = self.ranks(part, task, keys)
        return scores if self.late_scale == 1 else scores * self.late_scale

    def linear(
        self, part: Part, task: Task, keys: slice, scratch: Scratch | None = None
    ) -> Array | None:
        """(G C, n): the factor beside the activation in a gated unit; None without a gate."""
        if self.gate is None:
            return None
        linear = self._product("key", part, task, keys, scratch)
        return linear if self.key_bias is None else linear + self._key_bias(part, keys)

    def dropout_factors(self, task: Task, indices: Array) -> Array:
        """(G C, K): what dropout multiplies the weights of some keys (G C, K) by."""
        assert self.dropout is not None
        size = indices.shape[0] // len(task.heads)
        places, queries = [], []
        for head in task.heads:
            place = int(np.ravel_multi_index(head, self.batch)) if head else 0
            first = self.positions.first(head, task.rows) % 2**32
            queries.append(column(self.xp, first, size, indices))
            places.append(self.xp.full_like(queries[-1], place))
        heads, queries = (self.xp.concat(columns, axis=0) for columns in (places, queries))
        return self.dropout.factors(heads, queries, indices, self.dtype)

    def crew(self, workers: Any) -> Crew:
        """The threads for this problem: one where more are not worth starting."""
        scores = math.prod(self.batch) * self.queries * self.keys
        return Crew(workers if is_numpy(self.xp) and scores >= WORTH_THREADS else 1)

    def _key_bias(self, part: Part, keys: slice) -> Array:
        (bias,) = part.matrices["key_bias"]  # only the feed-forward layer has one, and one head
        return cast(self.xp, bias[keys, :].T, self.dtype)

    def _product(
        self, name: str, part: Part, task: Task, keys: slice, scratch: Scratch | None
    ) -> Array:
        """(G C, n): each head's ``query matrixᵀ``, in the thread's scratch where there is one."""
        matrices = [cast(self.xp, matrix[keys, :], self.dtype) for matrix in part.matrices[name]]
        shape = part.query.shape[0], matrices[0].shape[0]
        empty = partial(self.xp.empty, device=device(self.query))
        if scratch is None:
            products = empty(shape, dtype=self.dtype)
        else:
            products = scratch.matrix(name, *shape, self.dtype, empty)
        rows, kernels = task.per_head(part.query), engine(self.xp)
        return each_head(task, products, lambda i, own: kernels.matmul(rows[i], matrices[i], own))


def _fits_blas(*matrices: Array | None) -> bool:
    """Whether BLAS can read the matrices as they lie in memory: one axis of each has no gaps."""
    return all(
        matrix.itemsize in matrix.strides[-2:] and 0 not in matrix.strides[-2:]
        for matrix in matrices
        if isinstance(matrix, np.ndarray) and matrix.size
    )
