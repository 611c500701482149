"""Attention over Dask arrays is that of one machine, however they are chunked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np
from tests.oracles import assert_close

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

from topk_np import dask as over_dask  # noqa: E402

OPTIONS = ("plain", "is_causal", "window", "softcap", "mask", "row_mask")


@st.composite
def problems(draw: st.DrawFn) -> tuple[tuple[Any, ...], dict[str, Any], list[Any]]:
    """Whole numbers, so that equal products are equal; options; chunks of each axis."""
    lead = draw(st.sampled_from([(), (2,), (2, 3)]))
    queries, keys, width, values = (draw(st.integers(low, 9)) for low in (1, 1, 1, 1))
    seed = draw(st.integers(0, 1000))
    dtype = draw(st.sampled_from(["float64", "float32", "float16"]))
    rng = np.random.default_rng(seed)

    def whole(*shape: int) -> np.ndarray:
        return rng.integers(-2, 3, (*lead, *shape)).astype(dtype)

    arrays = whole(queries, width), whole(keys, width), whole(keys, values), whole(queries, values)
    kind = draw(st.sampled_from(OPTIONS))
    offset = draw(st.integers(-3, 12))
    options: dict[str, Any] = {"k": draw(st.integers(1, 10)), "scale": 1.0}
    more: dict[str, dict[str, Any]] = {
        "plain": {},
        "is_causal": {"is_causal": True, "query_offset": offset},
        "window": {"window": (draw(st.integers(0, 4)), None), "query_offset": offset},
        "softcap": {"softcap": 2.0},
        "mask": {"mask": rng.random((*lead, queries, keys)) < 0.6},
        "row_mask": {"mask": rng.random((1, keys)) < 0.6},
    }
    sizes = [draw(st.integers(1, 9)) for _ in range(3)]
    return arrays, options | more[kind], sizes


def chunked(arrays: tuple[Any, ...], sizes: list[int]) -> list[Any]:
    rows = [sizes[0], sizes[1], sizes[1], sizes[0]]
    lead = [1, 2][: arrays[0].ndim - 2]
    return [
        da.from_array(array, chunks=(*lead, size, sizes[2]))
        for array, size in zip(arrays, rows, strict=False)
    ]


@given(problem=problems())
def test_output_and_gradients_are_those_of_one_machine(problem: Any) -> None:
    (*arrays, dout), options, sizes = problem
    out, residuals = topk_np.topk_attention_fwd(*arrays, **options)
    grads = topk_np.topk_attention_bwd(residuals, dout)
    *inputs, ddout = chunked((*arrays, dout), sizes)
    dask_out, kept = over_dask.topk_attention_fwd(*inputs, **options)
    dask_grads = over_dask.topk_attention_bwd(kept, ddout)
    assert dask_out.chunks[:-1] == inputs[0].chunks[:-1]
    assert [grad.chunks[:-1] for grad in dask_grads] == [array.chunks[:-1] for array in inputs]
    with dask.config.set(scheduler="synchronous"):
        results = dask.compute(dask_out, kept.indices, kept.scores, *dask_grads)
    got, indices, scores, *got_grads = results
    assert np.array_equal(indices, residuals.indices)
    assert_close(scores, residuals.scores, size=10)
    for array, wanted in zip((got, *got_grads), (out, *grads[:3]), strict=True):
        assert array.dtype == wanted.dtype
        assert_close(array, wanted, size=10)


def test_nan_in_an_allowed_score_makes_its_row_nan_and_a_masked_one_does_nothing() -> None:
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((6, 3)) for _ in range(3))
    key[4] = value[4] = np.nan
    inputs = chunked((query, key, value), [2, 2, 3])
    assert np.isnan(over_dask.topk_attention(*inputs, k=2).compute()).all()
    mask = np.arange(6) != 4
    out, residuals = over_dask.topk_attention_fwd(*inputs, k=2, mask=mask)
    grads = over_dask.topk_attention_bwd(residuals, da.ones_like(out))
    assert all(np.isfinite(array).all() for array in dask.compute(out, *grads))
    assert np.array_equal(out.compute(), topk_np.topk_attention(query, key, value, k=2, mask=mask))


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_zero_lengths(shape: tuple[int, ...]) -> None:
    array = da.zeros(shape, chunks=2)
    out, residuals = over_dask.topk_attention_fwd(array, array, array, k=2)
    grads = over_dask.topk_attention_bwd(residuals, da.ones_like(out))
    assert [one.shape for one in dask.compute(out, *grads)] == [shape] * 4


def test_causal_attention_leaves_out_blocks_that_nobody_sees() -> None:
    array = da.ones((8, 2), chunks=(2, 2))
    tasks = [
        sum("best_of" in str(name) for name in out.__dask_graph__())
        for out in (
            over_dask.topk_attention(array, array, array, k=1),
            over_dask.topk_attention(array, array, array, k=1, is_causal=True),
            over_dask.topk_attention(array, array, array, k=1, window=(0, 0)),
        )
    ]
    assert tasks == [16, 10, 4]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": np.ones((4, 2))}, TypeError, "query must be a Dask array, got ndarray"),
        ({"query": da.ones(4)}, ValueError, r"query must have at least 2 axes, got shape \(4,\)"),
        ({"key": da.ones((4, 3))}, ValueError, "key.* 3"),
        ({"value": da.ones((5, 2))}, ValueError, "value.* 5"),
        ({"key": da.ones((1, 4, 2))}, ValueError, r"key must have the leading axes of query, \(\)"),
        ({"value": da.ones((4, 2), dtype="f4")}, TypeError, "value.*float32"),
        ({"query": da.ones((4, 2), dtype=int)}, TypeError, "query.*int64"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"mask": np.ones((4, 4))}, TypeError, "mask must be boolean"),
        ({"mask": np.ones((3, 4), bool)}, ValueError, "mask must broadcast"),
        ({"query": da.ones((3, 2)), "is_causal": True}, ValueError, "query_offset"),
        ({"softcap": -1.0}, ValueError, "softcap"),
        ({"scale": np.nan}, ValueError, "scale"),
    ],
)
def test_errors_name_the_argument(change: Any, error: type[Exception], message: str) -> None:
    arrays = {name: change.pop(name, da.ones((4, 2))) for name in ("query", "key", "value")}
    with pytest.raises(error, match=message):
        over_dask.topk_attention(*arrays.values(), **{"k": 1, **change})


def test_the_backward_pass_says_what_it_wants() -> None:
    array = da.ones((4, 2))
    _, residuals = over_dask.topk_attention_fwd(array, array, array, k=1)
    with pytest.raises(ValueError, match=r"dout must have the output's shape \(4, 2\), got"):
        over_dask.topk_attention_bwd(residuals, da.ones((4, 3)))
    with pytest.raises(TypeError, match=r"residuals must come from .* got tuple"):
        over_dask.topk_attention_bwd((), array)  # type: ignore[arg-type]
