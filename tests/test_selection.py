"""`top_k` is a plain selection: what a sorted list gives, along any axis."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import topk_np
from tests.backends import Backend
from tests.oracles import assert_same_bits, descending
from tests.strategies import scores_CN
from topk_np.selection import select

floats = st.integers(-2, 2).map(float) | st.sampled_from([math.nan, math.inf, -math.inf, -0.0])


def ranked(row: list[float], k: int) -> list[int]:
    """Indices of the k largest, NaN first, larger before smaller, lower index first."""
    return sorted(range(len(row)), key=lambda j: descending(row[j], j))[:k]


@given(data=st.data(), k=st.integers(1, 6))
def test_top_k_is_the_head_of_a_sorted_list_along_any_axis(
    xp: Backend, data: st.DataObject, k: int
) -> None:
    dtype = data.draw(st.sampled_from(xp.dtypes))
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=5))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = data.draw(hnp.arrays(dtype, shape, elements=floats, fill=st.nothing()))

    result = topk_np.top_k(xp.asarray(x), k, axis=axis)
    values, indices = xp.to_numpy(result.values), xp.to_numpy(result.indices)
    size = min(k, shape[axis])
    assert values.dtype == x.dtype
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(values, np.take_along_axis(x, indices, axis))
    rows = np.moveaxis(x, axis, -1).reshape(-1, shape[axis])
    found = np.moveaxis(indices, axis, -1).reshape(-1, size)
    for row, one in zip(rows, found, strict=True):
        assert one.tolist() == ranked(row.tolist(), size)


@given(scores=scores_CN(), k=st.integers(1, 14))
def test_unsorted_top_k_takes_the_same_entries_by_ascending_index(
    xp: Backend, scores: np.ndarray, k: int
) -> None:
    best = topk_np.top_k(xp.asarray(scores), k)
    unsorted = topk_np.top_k(xp.asarray(scores), k, sorted=False)
    indices = xp.to_numpy(unsorted.indices)
    np.testing.assert_array_equal(indices, np.sort(xp.to_numpy(best.indices), axis=-1))
    assert_same_bits(
        np.ascontiguousarray(xp.to_numpy(unsorted.values)),
        np.take_along_axis(scores, indices, axis=-1),
    )


def test_top_k_returns_minus_inf_like_any_value(xp: Backend) -> None:
    x = np.asarray([-math.inf, 1.0, -math.inf, -math.inf])
    result = topk_np.top_k(xp.asarray(x), 3)
    assert xp.to_numpy(result.indices).tolist() == [1, 0, 2]
    assert xp.to_numpy(result.values).tolist() == [1.0, -math.inf, -math.inf]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3), (0, 0)])
def test_top_k_of_nothing_is_empty(xp: Backend, shape: tuple[int, ...]) -> None:
    result = topk_np.top_k(xp.asarray(np.zeros(shape)), 2)
    assert result.values.shape == result.indices.shape == (*shape[:-1], min(2, shape[-1]))


def test_top_k_keeps_half_precision_values_as_they_are() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        x = np.asarray([1.0, 1.5, 0.25, 1.5]).astype(dtype)
        values, indices = topk_np.top_k(x, 2)
        assert values.dtype == dtype
        assert values.tolist() == [1.5, 1.5]
        assert indices.tolist() == [1, 3]


def test_top_k_takes_numpy_integers(xp: Backend) -> None:
    x = xp.asarray(np.asarray([[1.0, 2.0]]))
    result = topk_np.top_k(x, np.int32(1), axis=np.int64(0))  # type: ignore[arg-type]
    assert xp.to_numpy(result.indices).tolist() == [[0, 0]]


def test_top_k_does_not_alias_its_input() -> None:
    x = np.arange(6.0).reshape(2, 3)
    for is_sorted in (True, False):
        values, _ = topk_np.top_k(x, 3, sorted=is_sorted)
        assert not np.shares_memory(values, x)


def test_select_never_takes_minus_inf_but_top_k_does() -> None:
    scores = np.asarray([[-math.inf, 2.0, -math.inf]])
    assert select(scores, 2).indices.tolist() == [[1, -1]]
    assert topk_np.top_k(scores, 2, sorted=False).indices.tolist() == [[0, 1]]
