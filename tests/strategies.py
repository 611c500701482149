"""Hypothesis strategies, named by the shape they draw.

Values are drawn one of two ways: small whole numbers, whose products are exact, so that ties are
common and equal scores are equal for every engine; or normal numbers from a drawn seed, all
distinct. Whole numbers shrink towards zero; for the others the shapes and the seed shrink.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import topk_np
from tests.backends import Array, Backend
from tests.oracles import ACTIVATION_NAMES, allowed_pairs, bias_by_loops, softmax_by_loops

seeds = st.integers(0, 2**32 - 1)


def few_examples() -> settings:
    """A third of the profile's examples, for tests that are slow or draw little."""
    return settings(max_examples=max(3, settings().max_examples // 3))


@st.composite
def arrays_of(draw: st.DrawFn, shape: tuple[int, ...], *, whole: bool) -> np.ndarray:
    """A float64 array of the given shape: small whole numbers, or normal numbers."""
    if whole:
        small = hnp.arrays(np.int8, shape, elements=st.integers(-2, 2), fill=st.integers(-2, 2))
        return draw(small).astype(np.float64)
    return np.random.default_rng(draw(seeds)).standard_normal(shape)


@st.composite
def scores_CN(draw: st.DrawFn, dtype: str = "float64") -> np.ndarray:
    """A matrix of scores with many ties, NaN, infinities and both zeros."""
    shape = draw(st.tuples(st.integers(0, 5), st.integers(0, 12)))
    rare = st.sampled_from([-math.inf, -math.inf, math.inf, math.nan, -math.nan, -0.0])
    elements = st.integers(-3, 3).map(float) | rare
    return draw(hnp.arrays(dtype, shape, elements=elements, fill=st.nothing()))


@st.composite
def sparse_CK_of_N(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Ascending indices (C, K) int32 into N columns with -1 in unused slots, counts (C,), and N."""
    rows, columns = draw(st.integers(0, 5)), draw(st.integers(0, 7))
    slots = draw(st.integers(0, columns))
    indices = np.full((rows, slots), -1, np.int32)
    counts = np.zeros(rows, np.int32)
    for i in range(rows):
        chosen = sorted(draw(st.sets(st.integers(0, max(columns - 1, 0)), max_size=slots)))
        counts[i] = len(chosen)
        indices[i, : len(chosen)] = chosen
    return indices, counts, columns


@dataclass(frozen=True)
class AttentionProblem:
    """Everything one attention call needs, as NumPy arrays, and the gradient to send back."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    dout: np.ndarray
    k: int
    mask: Any = None
    is_causal: bool = False
    query_offset: Any = None
    window: Any = None
    query_lengths: Any = None
    key_lengths: Any = None
    scale: float | None = None
    softcap: float | None = None
    bias: Any = None
    dropout: tuple[float, int] | None = None
    always_keep: tuple[int, int] | None = None
    p: float | None = None
    """With p, `k` is max_k."""
    chunk_size: int | None = None

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axes of the output."""
        return self.dout.shape[:-2]

    @property
    def queries(self) -> int:
        return int(self.query.shape[-2])

    @property
    def keys(self) -> int:
        return int(self.key.shape[-2])

    @property
    def true_scale(self) -> float:
        return 1 / math.sqrt(self.query.shape[-1]) if self.scale is None else self.scale

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.query, self.key, self.value

    @property
    def masks(self) -> dict[str, Any]:
        """The options that say who may attend to whom."""
        return {
            "mask": self.mask,
            "is_causal": self.is_causal,
            "query_offset": self.query_offset,
            "window": self.window,
            "query_lengths": self.query_lengths,
            "key_lengths": self.key_lengths,
        }

    @property
    def dense_options(self) -> dict[str, Any]:
        return {
            **self.masks,
            "scale": self.scale,
            "softcap": self.softcap,
            "bias": self.bias,
            "dropout": self.dropout,
            "always_keep": self.always_keep,
            "chunk_size": self.chunk_size,
        }

    @property
    def options(self) -> dict[str, Any]:
        rule = {"k": self.k} if self.p is None else {"p": self.p, "max_k": self.k}
        return {**self.dense_options, **rule}

    @property
    def allowed(self) -> np.ndarray:
        """Which pairs may attend, (..., Q, N), by the oracle."""
        return allowed_pairs(self.lead, self.queries, self.keys, **self.masks)

    @property
    def always_kept(self) -> np.ndarray:
        """The allowed pairs that `always_keep` names, (..., Q, N), by the oracle."""
        sinks, local = self.always_keep or (0, 0)
        offset = 0 if self.query_offset is None else self.query_offset
        offsets = np.broadcast_to(offset, self.lead)[..., None, None]
        i, j = np.arange(self.queries)[:, None] + offsets, np.arange(self.keys)
        lengths = self.keys if self.key_lengths is None else self.key_lengths
        nearest = np.minimum(
            i, np.broadcast_to(lengths, self.lead)[..., None, None].astype(int) - 1
        )
        return np.asarray(self.allowed & ((j < sinks) | ((j <= nearest) & (j > nearest - local))))

    @property
    def full_bias(self) -> np.ndarray:
        """What is added to each score, (..., Q, N), by the oracle."""
        return bias_by_loops(self.lead, self.queries, self.keys, self.bias, self.query_offset)

    @property
    def scores(self) -> np.ndarray:
        """What the softmax is taken of, (..., Q, N); -inf masked."""
        scores = self.true_scale * (self.query @ self.key.mT)
        if self.softcap is not None:
            scores = self.softcap * np.tanh(scores / self.softcap)
        return np.where(self.allowed, scores + self.full_bias, -np.inf)

    @property
    def weights(self) -> np.ndarray:
        """The softmax of the scores, (..., Q, N), by the oracle."""
        rows = np.apply_along_axis(lambda row: softmax_by_loops(list(row)), -1, self.scores)
        return np.asarray(rows)

    @property
    def ranks(self) -> np.ndarray:
        """Scores up to the size of the scale, (..., Q, N): exact for whole numbers, -inf masked."""
        products = np.sign(self.true_scale) * (self.query @ self.key.mT)
        return np.where(self.allowed, products, -np.inf)

    @property
    def size(self) -> float:
        """How large the numbers are that results are summed from: what rounding errors go with."""
        largest = [float(np.abs(a[np.isfinite(a)]).max(initial=0)) for a in self.arrays]
        query, key, value = largest
        dout = float(np.abs(self.dout[np.isfinite(self.dout)]).max(initial=0))
        scale, width = abs(self.true_scale), self.query.shape[-1]
        score = scale * width * query * key + float(np.abs(self.full_bias).max(initial=0))
        dweight = self.value.shape[-1] * value * dout
        size = (1 + score) * (1 + value + dweight) * max(1.0, scale * max(query, key))
        return float(size)

    def astype(self, dtype: Any) -> AttentionProblem:
        """The same problem, its arrays rounded to another dtype."""
        query, key, value, dout = (a.astype(dtype) for a in (*self.arrays, self.dout))
        bias = self.bias
        if isinstance(bias, np.ndarray):
            bias = bias.astype(dtype)
        elif isinstance(bias, topk_np.T5Bias):
            bias = replace(bias, table=bias.table.astype(dtype))
        return replace(self, query=query, key=key, value=value, dout=dout, bias=bias)

    def on(self, xp: Backend) -> tuple[tuple[Array, ...], dict[str, Any], Array]:
        """Inputs, options and dout as arrays of another library."""
        return xp.arrays(*self.arrays), xp.options(self.options), xp.asarray(self.dout)

    def dense_on(self, xp: Backend) -> tuple[tuple[Array, ...], dict[str, Any], Array]:
        """Inputs, options without k, and dout as arrays of another library."""
        return xp.arrays(*self.arrays), xp.options(self.dense_options), xp.asarray(self.dout)


@st.composite
def leading_axes(draw: st.DrawFn) -> tuple[tuple[int, ...], ...]:
    """Leading axes of query, key and value that broadcast, and what they broadcast to."""
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=2, max_side=2))
    return (*shapes.input_shapes, shapes.result_shape)


_FEW = st.integers(1, 8)


@st.composite
def attention_QND(
    draw: st.DrawFn,
    *,
    whole: bool | None = None,
    masks: bool = True,
    keys: st.SearchStrategy[int] = _FEW,
) -> AttentionProblem:
    """A whole attention problem in float64."""
    lead_query, lead_key, lead_value, lead = draw(leading_axes())
    queries, length = draw(st.integers(1, 6)), draw(keys)
    width, value_width = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    whole = draw(st.booleans()) if whole is None else whole
    query = draw(arrays_of((*lead_query, queries, width), whole=whole))
    key = draw(arrays_of((*lead_key, length, width), whole=whole))
    value = draw(arrays_of((*lead_value, length, value_width), whole=whole))
    dout = draw(arrays_of((*lead, queries, value_width), whole=whole))
    problem = AttentionProblem(
        query,
        key,
        value,
        dout,
        k=draw(st.integers(1, length + 2)),
        scale=draw(st.sampled_from([None, 1.0, 0.3, 2.0, -0.5])),
        chunk_size=draw(st.none() | st.integers(1, queries + 1)),
    )
    return draw(masked(problem)) if masks else problem


BIAS_FUNCTIONS = (  # of query positions and key positions
    lambda i, j: i - 2 * j,
    lambda i, j: -(j % 3),
)


@st.composite
def biases(draw: st.DrawFn, problem: AttentionProblem) -> Any:
    """A bias of any form, whole numbers if the problem is of these; None among them."""
    lead = problem.lead
    whole = bool(np.all(problem.query == np.round(problem.query)))
    form = draw(st.sampled_from(["none", "array", "array", "alibi", "t5", "function"]))
    if form == "array":
        full = (*lead, problem.queries, problem.keys)
        shape = draw(hnp.broadcastable_shapes(full, min_dims=0, max_dims=len(full)))
        fits = np.broadcast_shapes(shape, full) == full
        return draw(arrays_of(shape if fits else full, whole=whole))
    if form == "alibi":
        return topk_np.ALiBi(draw(arrays_of(draw(_heads(lead)), whole=whole)))
    if form == "t5":
        table = draw(arrays_of((draw(st.integers(4, 9)), *draw(_heads(lead))), whole=whole))
        return topk_np.T5Bias(table, draw(st.booleans()), draw(st.integers(5, 12)))
    return draw(st.sampled_from(BIAS_FUNCTIONS)) if form == "function" else None


def _heads(lead: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes that are some of the last leading axes, or 1 in their place."""
    axes = [st.sampled_from(sorted({1, length})) for length in lead]
    return st.integers(0, len(lead)).flatmap(lambda n: st.tuples(*axes[len(lead) - n :]))


@st.composite
def attention_with_options(draw: st.DrawFn, *, whole: bool | None = None) -> AttentionProblem:
    """A whole attention problem with any of the options, all at once among them."""
    problem = draw(attention_QND(whole=whole))
    queries, keys, lead = problem.queries, problem.keys, problem.lead

    def lengths(most: int) -> st.SearchStrategy[Any]:
        one = st.integers(most // 2, most) | st.integers(0, most)
        dtype, shapes = st.sampled_from([np.uint8, np.int64]), _heads(lead).filter(bool)
        per_head = hnp.arrays(dtype, shapes, elements=one) if lead else one
        return st.none() | st.none() | one | per_head

    always = st.tuples(st.integers(0, keys + 1), st.integers(0, keys + 1))
    problem = replace(
        problem,
        query_lengths=draw(lengths(queries)),
        key_lengths=draw(lengths(keys)),
        softcap=draw(st.none() | st.sampled_from([0.7, 3.0, 30.0])),
        bias=draw(biases(problem)),
        dropout=draw(st.none() | st.tuples(st.sampled_from([0.1, 0.5, 0.9]), seeds)),
        always_keep=draw(st.none() | always),
        p=draw(st.none() | st.sampled_from([1e-3, 0.3, 0.7, 0.95, 1.0])),
    )
    if problem.query_offset is None and queries != keys:
        problem = replace(problem, query_offset=draw(st.integers(-2, keys + 1)))
    return problem


MASK_FUNCTIONS = (  # of query positions and key positions
    lambda i, j: (i - j) % 3 != 1,
    lambda i, j: j != 2,
    lambda i, j: i >= 2,
)


@st.composite
def masked(draw: st.DrawFn, problem: AttentionProblem) -> AttentionProblem:
    """The problem with or without a boolean mask, causal or not."""
    lead, queries, keys = problem.lead, problem.queries, problem.keys
    mask: Any = None
    if draw(st.booleans()):
        shape = draw(hnp.broadcastable_shapes((*lead, queries, keys), max_dims=len(lead) + 2))
        fits = np.broadcast_shapes(shape, (*lead, queries, keys)) == (*lead, queries, keys)
        mask = draw(hnp.arrays(bool, shape if fits else (queries, keys)))
    elif draw(st.booleans()):
        mask = draw(st.sampled_from(MASK_FUNCTIONS))
    is_causal = draw(st.booleans())
    side = st.none() | st.integers(0, keys + 1)
    window = draw(st.none() | st.tuples(side, side))
    query_offset: Any = None
    by_position = is_causal or window is not None or callable(mask)
    if draw(st.booleans()) or (by_position and queries != keys):
        query_offset = draw(st.integers(0, keys + 1))
        per_head = draw(st.booleans())
        if lead and per_head:
            query_offset = draw(hnp.arrays(np.int64, lead, elements=st.integers(0, keys + 1)))
    return replace(
        problem, mask=mask, is_causal=is_causal, query_offset=query_offset, window=window
    )


@dataclass(frozen=True)
class FFNProblem:
    """Everything one feed-forward call needs, as NumPy arrays, and the gradient to send back."""

    x: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    dout: np.ndarray
    k: int
    activation: str = "relu"
    key_bias: np.ndarray | None = None
    value_bias: np.ndarray | None = None
    gate: np.ndarray | None = None
    select: str = "score"
    chunk_size: int | None = None

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.x, self.keys, self.values

    @property
    def optional(self) -> dict[str, Any]:
        """The arrays that may be left out."""
        return {"key_bias": self.key_bias, "value_bias": self.value_bias, "gate": self.gate}

    @property
    def dense_options(self) -> dict[str, Any]:
        return {**self.optional, "activation": self.activation, "chunk_size": self.chunk_size}

    @property
    def options(self) -> dict[str, Any]:
        return {**self.dense_options, "k": self.k, "select": self.select}

    @property
    def size(self) -> float:
        """How large the numbers are that results are summed from."""
        x, keys, values, dout = (
            1 + float(np.abs(a).max(initial=0)) for a in (*self.arrays, self.dout)
        )
        gate = 1 if self.gate is None else 1 + float(np.abs(self.gate).max(initial=0))
        width, value_width = self.x.shape[-1], self.values.shape[-1]
        hidden = (width * x * max(keys, gate)) ** 2
        return float(len(self.keys) * hidden * values * dout * value_width)

    def astype(self, dtype: Any) -> FFNProblem:
        """The same problem, its arrays rounded to another dtype."""
        x, keys, values, dout = (a.astype(dtype) for a in (*self.arrays, self.dout))
        optional: dict[str, Any] = {
            name: None if array is None else array.astype(dtype)
            for name, array in self.optional.items()
        }
        return replace(self, x=x, keys=keys, values=values, dout=dout, **optional)

    def on(self, xp: Backend) -> tuple[tuple[Array, ...], dict[str, Any], Array]:
        """Inputs, options and dout as arrays of another library."""
        return xp.arrays(*self.arrays), xp.options(self.options), xp.asarray(self.dout)

    def dense_on(self, xp: Backend) -> tuple[tuple[Array, ...], dict[str, Any], Array]:
        """Inputs, options without k, and dout as arrays of another library."""
        return xp.arrays(*self.arrays), xp.options(self.dense_options), xp.asarray(self.dout)


@st.composite
def ffn_FD(
    draw: st.DrawFn,
    *,
    whole: bool | None = None,
    activation: str | None = None,
    gated: bool | None = None,
    biased: bool | None = None,
    select: str | None = None,
) -> FFNProblem:
    """A whole feed-forward problem in float64."""
    lead = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    tokens = draw(st.integers(1, 5))
    width, value_width, units = (draw(st.integers(1, n)) for n in (4, 3, 8))
    whole = draw(st.booleans()) if whole is None else whole
    gated = draw(st.booleans()) if gated is None else gated
    with_key_bias, with_value_bias = (
        draw(st.booleans()) if biased is None else biased for _ in range(2)
    )
    return FFNProblem(
        draw(arrays_of((*lead, tokens, width), whole=whole)),
        draw(arrays_of((units, width), whole=whole)),
        draw(arrays_of((units, value_width), whole=whole)),
        draw(arrays_of((*lead, tokens, value_width), whole=whole)),
        k=draw(st.integers(1, units + 2)),
        activation=draw(st.sampled_from(ACTIVATION_NAMES)) if activation is None else activation,
        key_bias=draw(arrays_of((units,), whole=whole)) if with_key_bias else None,
        value_bias=draw(arrays_of((value_width,), whole=whole)) if with_value_bias else None,
        gate=draw(arrays_of((units, width), whole=whole)) if gated else None,
        select=draw(st.sampled_from(["score", "activation"])) if select is None else select,
        chunk_size=draw(st.none() | st.integers(1, tokens + 1)),
    )
