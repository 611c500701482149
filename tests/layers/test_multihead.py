"""Multi-head attention: head by head in loops, in all its forms, and its gradients as slopes."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import topk_np
from tests.backends import NUMPY, Backend
from tests.layers.test_rope import ropes, turned_by_loops
from tests.oracles import allowed_pairs, assert_all_close, assert_close, attention_by_loops
from tests.strategies import seeds
from tests.test_dense import assert_gradients_are_slopes
from topk_np import (
    MultiheadWeights,
    Rope,
    merge_heads,
    multihead_attention,
    multihead_attention_bwd,
    multihead_attention_fwd,
    split_heads,
)
from topk_np.layers.attention_kinds import KINDS
from topk_np.testing import check_vjp


@dataclass(frozen=True)
class Problem:
    """One call, in float64, and the gradient to send back."""

    x: np.ndarray
    weights: MultiheadWeights
    context: np.ndarray | None
    options: dict[str, Any]
    dout: np.ndarray

    @property
    def heads(self) -> int:
        return int(self.options["heads"])

    def on(self, xp: Backend) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs and options as arrays of another library."""
        x, context = xp.arrays(self.x, self.context)
        weights = MultiheadWeights(*xp.arrays(*self.weights))
        return (x, weights, context), xp.options(self.options)

    def flat(self) -> tuple[np.ndarray | None, ...]:
        """All inputs side by side, in the order of `flat_grads`."""
        return (self.x, *self.weights, self.context)


def flat_grads(grads: topk_np.MultiheadGrads) -> tuple[np.ndarray | None, ...]:
    return (grads.x, *grads.weights, grads.context)


@st.composite
def multihead_QN(draw: st.DrawFn, *, topk: bool | None = None) -> Problem:
    """Self- or cross-attention with any heads, masks and positions."""
    groups, repeats, half, value_width = (draw(st.integers(1, 2)) for _ in range(4))
    heads, width = groups * repeats, 2 * half
    sizes = st.integers(1, 4)
    features, source_features, out_features = draw(sizes), draw(sizes), draw(sizes)
    queries, keys = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=2))
    (x_lead, source_lead), lead = shapes.input_shapes, shapes.result_shape
    rng = np.random.default_rng(draw(seeds))
    context = None
    if cross := draw(st.booleans()):
        context = rng.standard_normal((*source_lead, keys, source_features))
    else:
        source_features, keys, lead = features, queries, x_lead
    rows = heads * width, groups * width, groups * value_width, out_features
    columns = features, source_features, source_features, heads * value_width
    matrices = [rng.standard_normal(shape) for shape in zip(rows, columns, strict=True)]
    biases = [rng.standard_normal(n) if draw(st.booleans()) else None for n in rows]
    options: dict[str, Any] = {"heads": heads}
    if draw(st.booleans()):
        options["rope"] = draw(ropes(width))
        if draw(st.booleans()):
            options["query_positions"] = rng.integers(0, 9, queries)
        if draw(st.booleans()):
            options["key_positions"] = draw(st.integers(0, 9))
    if draw(st.booleans()):
        per_head = draw(st.sampled_from([(), (1,), (heads,)]))
        per_row = (*lead, heads) if draw(st.booleans()) else per_head
        options["mask"] = rng.random((*per_row, queries, keys)) < 0.7
    options["is_causal"] = draw(st.booleans())
    if (options["is_causal"] and queries != keys) or draw(st.booleans()):
        options["query_offset"] = draw(st.integers(0, keys))
        if lead and x_lead == lead and draw(st.booleans()):
            options["query_offset"] = rng.integers(0, keys + 1, lead)
    if draw(st.booleans()) if topk is None else topk:
        options["k"] = draw(st.integers(1, keys + 1))
    options |= {"scale": draw(st.sampled_from([None, 0.3])), "chunk_size": 1 + int(cross)}
    return Problem(
        rng.standard_normal((*x_lead, queries, features)),
        MultiheadWeights(*matrices, *biases),
        context,
        options,
        rng.standard_normal((*lead, queries, out_features)),
    )


def run(problem: Problem, xp: Backend = NUMPY, **more: Any) -> tuple[Any, Any]:
    """Output and flat gradients, as NumPy arrays."""
    inputs, options = problem.on(xp)
    out, residuals = multihead_attention_fwd(*inputs, **{**options, **more})
    grads = multihead_attention_bwd(residuals, xp.asarray(problem.dout))
    flat = (None if grad is None else xp.to_numpy(grad) for grad in flat_grads(grads))
    return xp.to_numpy(out), tuple(flat)


def by_loops(problem: Problem) -> np.ndarray:
    """The textbook: each head by itself with its own rows of the projections."""
    w, x, options, heads = problem.weights, problem.x, problem.options, problem.heads
    source = x if problem.context is None else problem.context
    lead = np.broadcast_shapes(x.shape[:-2], source.shape[:-2])
    queries, keys, width = x.shape[-2], source.shape[-2], len(w.query) // heads
    groups = len(w.key) // width
    value_width = len(w.value) // groups
    offset = options.get("query_offset")
    given = options.get("query_positions")
    first = 0 if offset is None else np.asarray(offset)[..., None]
    query_positions = first + np.arange(queries) if given is None else given
    in_self = problem.context is None and given is not None
    key_positions = options.get("key_positions", given if in_self else 0)
    allowed = allowed_pairs(
        (*lead, heads),
        queries,
        keys,
        mask=options.get("mask"),
        is_causal=options["is_causal"],
        query_offset=None if offset is None else np.asarray(offset)[..., None],
    )
    scale = 1 / math.sqrt(width) if options["scale"] is None else options["scale"]

    def project(rows: np.ndarray, name: str, i: int, size: int) -> Any:
        matrix, bias = getattr(w, name), getattr(w, name + "_bias")
        some = slice(i * size, (i + 1) * size)
        return rows @ matrix[some].T + (0 if bias is None else bias[some])

    attended = []
    for h in range(heads):
        group = h // (heads // groups)
        query = project(x, "query", h, width)
        key = project(source, "key", group, width)
        value = project(source, "value", group, value_width)
        if "rope" in options:
            query = turned_by_loops(query, options["rope"], query_positions)
            key = turned_by_loops(key, options["rope"], key_positions)
        pairs = allowed[..., h, :, :]
        attended.append(attention_by_loops(query, key, value, pairs, scale, options.get("k")))
    bias = 0 if w.out_bias is None else w.out_bias
    out: np.ndarray = np.concatenate(attended, axis=-1) @ w.out.T + bias
    return out


@given(problem=multihead_QN())
def test_it_is_the_attention_of_each_head_side_by_side(xp: Backend, problem: Problem) -> None:
    inputs, options = problem.on(xp)
    out = multihead_attention(*inputs, **options)
    assert_close(xp.to_numpy(out), by_loops(problem), size=1e4)
    kept, _ = multihead_attention_fwd(*inputs, **options)
    assert_close(xp.to_numpy(kept), xp.to_numpy(out), size=0)


@given(problem=multihead_QN())
def test_gradients_are_those_of_numpy_on_every_library(xp: Backend, problem: Problem) -> None:
    assert_all_close(run(problem, xp)[1], run(problem)[1], size=1e5)


@given(problem=multihead_QN(), seed=seeds)
def test_gradients_are_slopes(problem: Problem, seed: int) -> None:
    _, grads = run(problem)
    kept = getattr(residuals_of(problem), "indices", None)

    def loss(x: Any, *others: Any) -> float:
        *weights, context = others
        moved = Problem(x, MultiheadWeights(*weights), context, problem.options, problem.dout)
        if kept is not None:  # no key may enter or leave on the way
            assume(np.array_equal(residuals_of(moved).indices, kept))
        inputs, options = moved.on(NUMPY)
        return float(np.sum(problem.dout * multihead_attention(*inputs, **options)))

    assert_gradients_are_slopes(loss, problem.flat(), grads, seed)


def residuals_of(problem: Problem) -> Any:
    inputs, options = problem.on(NUMPY)
    return multihead_attention_fwd(*inputs, **options)[1].attention


@given(problem=multihead_QN(topk=True))
def test_dense_is_topk_with_all_keys(problem: Problem) -> None:
    (dense, dense_grads), (topk, topk_grads) = (run(problem, k=k) for k in (None, 100))
    assert_close(topk, dense, size=1e3)
    assert_all_close(topk_grads, dense_grads, size=1e5)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("attention", list(KINDS))
def test_every_way_to_attend_is_that_of_each_head(xp: Backend, attention: str, cross: bool) -> None:
    rng = np.random.default_rng(0)
    source_width = 3 if cross else 6
    shapes = (8, 6), (4, source_width), (4, source_width), (5, 8)
    weights = [rng.standard_normal(shape) for shape in shapes]
    x, context = rng.standard_normal((2, 5, 6)), rng.standard_normal((2, 7, 3))
    own: dict[str, Any] = {"dense": {}, "chunked": {}, "topk": {"k": 2}}.get(
        attention, {"features": 6, "seed": 3}
    )
    options = {"heads": 4, "attention": attention, "is_causal": not cross, **own}
    options["key_lengths"] = np.array([3, 5])

    def fwd(x: Any, *others: Any, on: Backend = NUMPY) -> Any:
        context = others[4] if cross else None
        given = MultiheadWeights(*others[:4])
        return multihead_attention_fwd(x, given, context, **on.options(options))

    def bwd(residuals: Any, dout: Any) -> Any:
        grads = flat_grads(multihead_attention_bwd(residuals, dout))
        return [grad for grad in grads if grad is not None]

    arrays = [x, *weights, context] if cross else [x, *weights]
    out, residuals = fwd(*xp.arrays(*arrays), on=xp)
    source = context if cross else x
    heads = [
        np.repeat(split_heads(rows @ w.T, count), 4 // count, axis=-3)
        for rows, w, count in zip((x, source, source), weights, (4, 2, 2), strict=False)
    ]
    masks: dict[str, Any] = {"is_causal": not cross, "key_lengths": np.array([[3], [5]])}
    attended = KINDS[attention].attend(*heads, **own, **masks)
    assert_close(xp.to_numpy(out), merge_heads(attended) @ weights[3].T, size=1e3)
    assert residuals.nbytes >= 8 * 2 * (5 * 8 + 2 * source.shape[1] * 4 + 5 * 8)
    if xp is NUMPY:
        check_vjp(fwd, bwd, *arrays)


def test_the_way_to_attend_is_chosen_by_name_or_by_its_rule() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((1500, 4)), MultiheadWeights(*rng.standard_normal((4, 4, 4)))

    def residuals(**options: Any) -> Any:
        return multihead_attention_fwd(x, weights, heads=2, **options)[1].attention

    assert type(residuals(k=2)) is type(residuals(attention="topk", k=2))
    assert type(residuals(p=0.5, max_k=2)) is type(residuals(k=2))
    assert residuals().chunk_size == residuals(attention="dense").chunk_size == 1500
    assert residuals(attention="chunked").chunk_size == 1024
    assert residuals(attention="chunked", chunk_size=7).chunk_size == 7
    assert residuals(attention="chunked", memory_budget=2**22).chunk_size < 100


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attention": "full"}, ValueError, "attention must be one of 'dense', 'chunked', "),
        ({"attention": "chunked", "chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
        ({"attention": "topk"}, TypeError, "k must be an integer, or p be given"),
        ({"attention": "rfa", "k": 2}, ValueError, "k must be None with attention='rfa'"),
        ({"attention": "dense", "p": 0.5}, ValueError, "p must be None with attention='dense'"),
        ({"attention": "performer", "window": (1, 0)}, TypeError, "argument 'window'"),
        ({"features": 8}, TypeError, "unexpected keyword argument 'features'"),
    ],
)
def test_a_way_to_attend_has_its_own_options(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    weights = MultiheadWeights(*[np.eye(4)] * 4)
    with pytest.raises(error, match=message):
        multihead_attention(np.eye(4), weights, heads=2, **options)


@given(problem=multihead_QN())
def test_grouped_heads_are_repeated_heads(problem: Problem) -> None:
    w, heads = problem.weights, problem.heads
    width = len(w.query) // heads
    groups = len(w.key) // width

    def repeated(rows: Any) -> Any:
        if rows is None:
            return None
        split = rows.reshape(groups, len(rows) // groups, *rows.shape[1:])
        return np.repeat(split, heads // groups, axis=0).reshape(-1, *rows.shape[1:])

    names = ("key", "value", "key_bias", "value_bias")
    plain = w._replace(**{name: repeated(getattr(w, name)) for name in names})
    other = Problem(problem.x, plain, problem.context, problem.options, problem.dout)
    (out, grads), (wanted, wanted_grads) = run(problem), run(other)
    assert_close(out, wanted, size=1e3)
    assert_close(grads[0], wanted_grads[0], size=1e5)
    key, wanted_key = grads[2], wanted_grads[2]
    parts = wanted_key.reshape(groups, heads // groups, width, -1)
    assert_close(key, parts.sum(1).reshape(key.shape), size=1e5)


@given(problem=multihead_QN(), data=st.data())
def test_options_are_those_of_attention_over_all_heads(
    xp: Backend, problem: Problem, data: st.DataObject
) -> None:
    """Grouped as (G, H/G) inside, H heads side by side here; the gradient of a bias likewise."""
    w, heads, options = problem.weights, problem.heads, dict(problem.options)
    source = problem.x if problem.context is None else problem.context
    groups = len(w.key) * heads // len(w.query)
    queries, keys = problem.x.shape[-2], source.shape[-2]
    options.pop("rope", None)
    lead = np.broadcast_shapes(problem.x.shape[:-2], source.shape[:-2])
    rng = np.random.default_rng(data.draw(seeds))
    options |= {
        "query_offset": rng.integers(0, keys + 1, lead) if lead else 1,
        "key_lengths": rng.integers(0, keys + 1, lead) if lead else keys,
        "query_lengths": data.draw(st.none() | st.integers(0, queries)),
        "softcap": data.draw(st.sampled_from([None, 2.0])),
        "dropout": data.draw(st.sampled_from([None, (0.3, 7)])),
        "bias": data.draw(
            st.sampled_from(
                [
                    None,
                    rng.standard_normal((heads, queries, keys)),
                    rng.standard_normal((*lead, 1, 1, keys)),
                    rng.standard_normal(keys),
                    topk_np.ALiBi(rng.standard_normal(heads)),
                    topk_np.T5Bias(rng.standard_normal((6, heads))),
                    topk_np.T5Bias(rng.standard_normal(6)),
                ]
            )
        ),
    }
    if "k" in options:
        options["always_keep"] = data.draw(st.sampled_from([None, (1, 1)]))
    for name in ("query_positions", "key_positions"):
        options.pop(name, None)
    same = Problem(problem.x, w, problem.context, options, problem.dout)
    (x, weights, context), given_options = same.on(xp)
    out, residuals = multihead_attention_fwd(x, weights, context, **given_options)
    dout = xp.asarray(problem.dout)
    grads = multihead_attention_bwd(residuals, dout)

    def side_by_side(name: str, rows: np.ndarray, count: int) -> np.ndarray:
        bias = getattr(w, name + "_bias")
        split = split_heads(rows @ getattr(w, name).T + (0 if bias is None else bias), count)
        return np.repeat(split, heads // count, axis=-3)

    inputs = (
        side_by_side("query", problem.x, heads),
        side_by_side("key", source, groups),
        side_by_side("value", source, groups),
    )
    own = {name: value for name, value in options.items() if name != "heads"}
    for name in ("query_offset", "key_lengths"):
        own[name] = np.asarray(own[name])[..., None] if lead else own[name]
    kind = "topk_attention" if own.get("k") else "dense_attention"
    attended, wanted = getattr(topk_np, kind + "_fwd")(*inputs, **own)
    rows = merge_heads(attended) @ w.out.T + (0 if w.out_bias is None else w.out_bias)
    assert_close(xp.to_numpy(out), rows, size=1e4)
    dattended = split_heads(problem.dout @ w.out, heads)
    bias = getattr(topk_np, kind + "_bwd")(wanted, dattended).bias
    got = None if grads.bias is None else xp.to_numpy(grads.bias)
    assert_all_close([got], [bias], size=1e5)


@given(problem=multihead_QN(), shift=st.integers(-50, 50))
def test_only_relative_positions_matter(problem: Problem, shift: int) -> None:
    rope = problem.options.get("rope", Rope())
    runs = [
        run(problem, rope=rope, query_positions=3 + by, key_positions=by)[0] for by in (0, shift)
    ]
    assert_close(runs[1], runs[0], size=1e4)


def test_half_precision_is_computed_in_single() -> None:
    rng = np.random.default_rng(0)
    weights = MultiheadWeights(*(rng.standard_normal((8, 8)) / 3 for _ in range(4)))
    x, dout = rng.standard_normal((2, 5, 8))
    options = {"heads": 2, "is_causal": True, "rope": Rope(), "scale": None}
    exact = Problem(x, weights, None, options, dout)
    half = Problem(
        x.astype("f2"),
        MultiheadWeights(*(None if w is None else w.astype("f2") for w in weights)),
        None,
        options,
        dout.astype("f2"),
    )
    (out, grads), (wanted, wanted_grads) = run(half), run(exact)
    for one, other in zip((out, *grads), (wanted, *wanted_grads), strict=True):
        if other is not None:
            assert one.dtype == np.float16
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-2 * np.abs(other).max())


@pytest.mark.parametrize("k", [None, 2])
def test_a_masked_row_of_the_context_contributes_nothing_even_if_it_is_nan(k: int | None) -> None:
    rng = np.random.default_rng(0)
    weights = MultiheadWeights(*(rng.standard_normal((4, 4)) for _ in range(4)))
    x, context = rng.standard_normal((3, 4)), rng.standard_normal((5, 4))
    options = {"heads": 2, "k": k, "mask": np.arange(5) < 4}
    problems = [Problem(x, weights, context.copy(), options, x) for _ in range(2)]
    assert problems[1].context is not None
    problems[1].context[4] = np.nan
    (out, grads), (wanted, wanted_grads) = (run(problem) for problem in problems[::-1])
    assert_close(out, wanted)
    assert_all_close(grads, wanted_grads)
    assert np.isfinite(grads[3]).all()


def test_a_step_with_the_keys_so_far_is_a_row_of_the_causal_pass() -> None:
    rng = np.random.default_rng(0)
    weights = MultiheadWeights(*(rng.standard_normal(s) for s in ((8, 6), (4, 6), (4, 6), (6, 8))))
    x = rng.standard_normal((7, 6))
    options: dict[str, Any] = {"heads": 4, "rope": Rope(), "is_causal": True, "k": 3}
    whole = multihead_attention(x, weights, **options)
    for i in range(7):
        step = multihead_attention(x[i : i + 1], weights, x[: i + 1], query_offset=i, **options)
        assert_close(step[0], whole[i], size=100.0)


def test_memory_is_linear_in_length() -> None:
    rng = np.random.default_rng(0)
    length, wide = 4000, rng.standard_normal((8, 8)).astype("f4")
    x = rng.standard_normal((length, 8)).astype("f4")
    tracemalloc.start()
    options: dict[str, Any] = {"heads": 2, "k": 4, "rope": Rope(), "memory_budget": 1 << 22}
    out, residuals = multihead_attention_fwd(x, MultiheadWeights(*[wide] * 4), **options)
    multihead_attention_bwd(residuals, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < length * length * 4 / 4
    slots = 2 * length * 4 * 8
    rows = (4 * length * 8 + 4 * length * 2) * 4  # projections, attended; cosines and sines
    assert residuals.nbytes == pytest.approx(slots + rows, rel=0.1)


@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=3, max_side=3),
    sizes=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_heads_are_slices_of_the_features_and_merging_undoes_it(
    xp: Backend, shape: Any, sizes: Any
) -> None:
    groups, repeats, width = sizes
    heads = groups * repeats
    rows = np.arange(float(math.prod(shape) * heads * width)).reshape(*shape, heads * width)
    x = xp.asarray(rows)
    split, grouped = split_heads(x, heads), split_heads(x, heads, groups=groups)
    for h in range(heads):
        own = rows[..., h * width : (h + 1) * width]
        assert np.array_equal(xp.to_numpy(split)[..., h, :, :], own)
        at = (..., h // repeats, h % repeats, slice(None), slice(None))
        assert np.array_equal(xp.to_numpy(grouped)[at], own)
    assert np.array_equal(xp.to_numpy(merge_heads(split)), rows)
    assert np.array_equal(xp.to_numpy(merge_heads(grouped, grouped=True)), rows)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: split_heads(np.ones((2, 6)), 4), ValueError, "heads must divide the 6 features"),
        (lambda: split_heads(np.ones((2, 6)), 3, groups=2), ValueError, "groups must divide the 3"),
        (lambda: split_heads(np.ones(6), 3), ValueError, "at least 2 axes"),
        (lambda: split_heads([[1.0]], 1), TypeError, "must be an array"),
        (lambda: split_heads(np.ones((2, 6)), 0), ValueError, "heads must be at least 1"),
        (lambda: merge_heads(np.ones((2, 6))), ValueError, r"\(\.\.\., H, Q, W\)"),
        (lambda: merge_heads(np.ones((2, 2, 6)), grouped=True), ValueError, "at least 4 axes"),
    ],
)
def test_heads_are_checked(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


GOOD = MultiheadWeights(np.ones((8, 6)), np.ones((4, 6)), np.ones((6, 6)), np.ones((5, 12)))


@pytest.mark.parametrize(
    ("weights", "options", "error", "message"),
    [
        ({"query": np.ones((9, 6))}, {}, ValueError, "weights.query must have a multiple of heads"),
        ({"query": np.ones((8, 7))}, {}, ValueError, "weights.query's last axis must be equal to"),
        ({"key": np.ones((4, 7))}, {}, ValueError, "weights.key's last axis .* that of x, 6, got"),
        ({"key": np.ones((3, 6))}, {}, ValueError, "weights.key must have a multiple of the width"),
        ({"key": np.ones((6, 6))}, {}, ValueError, "the key heads must divide the 4 query heads"),
        ({"key": np.ones(6)}, {}, ValueError, r"weights.key must be a matrix .* got \(6,\)"),
        ({"key": np.ones((0, 6))}, {}, ValueError, r"not empty, got \(0, 6\)"),
        ({"value": np.ones((5, 6))}, {}, ValueError, "weights.value must have a multiple of the k"),
        ({"out": np.ones((5, 8))}, {}, ValueError, "weights.out's last axis must be equal to h"),
        ({"out": np.ones((5, 12), "f4")}, {}, TypeError, "weights.out must have the dtype of x"),
        ({"out": None}, {}, TypeError, "weights.out must be an array"),
        ({"key_bias": np.ones(8)}, {}, ValueError, r"weights.key_bias must have shape \(4,\)"),
        ({}, {"heads": 2.0}, TypeError, "heads must be an integer, got 2.0"),
        ({}, {"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({}, {"rope": 1e4}, TypeError, "rope must be a Rope, got float"),
        ({}, {"rope": Rope(width=4)}, ValueError, "of the 2 features, at least 2, got 4"),
        ({}, {"key_positions": 3}, ValueError, "key_positions must be None without rope"),
        ({}, {"query_positions": 3}, ValueError, "query_positions must be None without rope"),
        (
            {},
            {"rope": Rope(), "query_positions": np.arange(2)},
            ValueError,
            "query_positions must broadcast",
        ),
        ({}, {"mask": np.ones((3, 3, 3), bool)}, ValueError, "mask must have an axis of the 4"),
        ({}, {"mask": np.ones((2, 3))}, TypeError, "mask must be boolean"),
        ({}, {"sharpness": 2}, TypeError, "unexpected keyword argument 'sharpness'"),
    ],
)
def test_bad_input_is_named(
    weights: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        multihead_attention(np.ones((3, 6)), GOOD._replace(**weights), **{"heads": 4, **options})


def test_other_weights_and_residuals_are_refused() -> None:
    other: Any = tuple(GOOD)
    with pytest.raises(TypeError, match="weights must be a MultiheadWeights, got tuple"):
        multihead_attention(np.ones((3, 6)), other, heads=4)
    with pytest.raises(TypeError, match="grouped must be True or False"):
        merge_heads(np.ones((2, 2, 6)), grouped=other)
    with pytest.raises(TypeError, match="residuals must come from multihead_attention_fwd"):
        multihead_attention_bwd(other, np.ones((3, 5)))
    _, residuals = multihead_attention_fwd(np.ones((3, 6)), GOOD, heads=4)
    with pytest.raises(ValueError, match=r"dout must have the shape of the output, \(3, 5\)"):
        multihead_attention_bwd(residuals, np.ones((3, 6)))
