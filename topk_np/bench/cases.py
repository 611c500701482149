"""The problems of the benchmark, their inputs, and the runs that a peer makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import Array

FORWARD, BOTH = MODES = ("forward", "forward+backward")
ATTENTION, FFN = KINDS = ("attention", "ffn")
STEP = "training step"  # see `topk_np.bench.step`

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


@dataclass(frozen=True)
class Case:
    """
    One problem, ``activation(scale query keyᵀ) value``.

    Attention has softmax and one matrix for each head. The feed-forward layer has ReLU and no
    scale: its queries are the tokens, its keys and values the two matrices.
    """

    kind: str
    heads: int
    queries: int
    keys: int
    width: int
    """D, and V as well."""
    k: int
    causal: bool = False

    @property
    def scale(self) -> float:
        """The factor of the scores."""
        return 1 / math.sqrt(self.width) if self.kind == ATTENTION else 1.0

    @property
    def scores(self) -> int:
        """The number of scores, masked ones included."""
        return self.heads * self.queries * self.keys

    @property
    def rows(self) -> int:
        """The number of rows of the inputs."""
        return self.heads * (self.queries + self.keys)

    def clipped(self, length: int) -> Case:
        """The same with at most `length` queries and keys."""
        queries, keys = min(self.queries, length), min(self.keys, length)
        return replace(self, queries=queries, keys=keys, k=min(self.k, keys))


class Inputs(NamedTuple):
    """Float32 arrays with one head axis."""

    query: Array
    """(heads, Q, D)"""
    key: Array
    """(heads, N, D)"""
    value: Array
    """(heads, N, D)"""
    dout: Array
    """(heads, Q, D), the gradient of the output."""


class Runs(NamedTuple):
    """Functions that compute a case; their results are kept alive until they are measured."""

    forward: Callable[[], Any]
    """Returns the output."""
    both: Callable[[], tuple[Any, ...]] | None = None
    """Returns the output and the gradients of query, key and value."""

    def of(self, mode: str) -> Callable[[], Any]:
        """The function for a mode."""
        return self.forward if mode == FORWARD or self.both is None else self.both


def make_inputs(case: Case, /) -> Inputs:
    """Normal numbers, the same in every process; scores have a standard deviation of 1."""
    draw = np.random.default_rng(0)

    def normal(rows: int) -> Array:
        return draw.standard_normal((case.heads, rows, case.width), np.float32)

    inputs = Inputs(*map(normal, (case.queries, case.keys, case.keys, case.queries)))
    if case.kind == FFN:
        np.multiply(inputs.key, case.width**-0.5, out=inputs.key)
    return inputs


def attention_case(
    length: int,
    /,
    *,
    queries: int | None = None,
    causal: bool = False,
    heads: int = 4,
    k: int = 64,
) -> Case:
    """Attention of heads of width 64; self-attention if `queries` is None."""
    queries = length if queries is None else queries
    return Case(ATTENTION, heads, queries, length, 64, min(k, length), causal)


def ffn_case(tokens: int, width: int, units: int, /) -> Case:
    """A feed-forward layer with k = 256."""
    return Case(FFN, 1, tokens, units, width, min(256, units))


def attention_cases(lengths: Sequence[int], causal: bool, /) -> list[Case]:
    """Problems of self-attention, shortest first."""
    return [attention_case(length, causal=causal) for length in sorted(set(lengths))]


FFN_CASES = (  # BERT base's and T5's shapes; the last is T5-11B's
    ffn_case(2048, 768, 3072),
    ffn_case(2048, 1024, 16384),
    ffn_case(1024, 1024, 65536),
)
