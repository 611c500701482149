"""What only NumPy can show: memory that is saved, arrays that are written to, equal bits."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import topk_np.kernels.numpy as engine
from tests.kernels.stacks import Sparse, sparse_GCN
from tests.oracles import assert_same_bits
from tests.strategies import seeds
from topk_np.kernels import tuning


def peak(function: Callable[[], Any]) -> int:
    """Bytes that a function has allocated at most, once it has imported what it needs."""
    function()
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_slots_are_taken_without_a_copy_of_scores_that_lie_apart() -> None:
    scores = np.random.default_rng(0).standard_normal((1, 300, 1040)).astype(np.float32)
    scores = scores[:, :, :1024]
    indices = np.tile(np.asarray([3, 1023, -1], np.int32), (1, 300, 1))
    taken = engine.take_slots(scores, indices)
    np.testing.assert_array_equal(taken[:, :, :2], scores[:, :, [3, 1023]])
    assert not taken[:, :, 2].any()
    assert peak(lambda: engine.take_slots(scores, indices)) < scores.nbytes / 10


def test_many_equal_scores_are_selected_from_with_little_memory() -> None:
    """With one copy of the scores, but not with the place and the value of each that is equal."""
    scores = np.zeros((1, 100, 150))
    scores[:, :, :100] = 1.0
    assert peak(lambda: engine.select(scores, 10)) < 1.5 * scores.nbytes


def test_products_write_to_the_memory_of_the_last_one_of_the_same_name() -> None:
    query, key, scratch = np.ones((2, 50, 3)), np.ones((2, 70, 3)), {}  # type: ignore[var-annotated]
    made = engine.product(query, key, 0.5, scratch, "scores")
    again = engine.product(query[:, :40], key, 0.5, scratch, "scores")
    assert np.shares_memory(made, again)
    few = peak(lambda: engine.product(query, key, 0.5, scratch, "scores"))
    assert few < made.nbytes / 2


def test_sums_are_added_in_place_also_to_rows_with_gaps() -> None:
    whole = np.ones((1, 5, 4))
    pattern = engine.pattern(np.asarray([[[1, 3]]], np.int32), 5)
    given = np.asarray([[[1.0, 10.0]]]), pattern, np.asarray([[[1.0, 2.0]]])
    out = engine.scatter_matmul(*given, whole[:, :, ::2])
    assert np.shares_memory(out, whole)
    assert whole[0, :, ::2].tolist() == [[1, 1], [2, 3], [1, 1], [11, 21], [1, 1]]
    assert (whole[:, :, 1::2] == 1).all()


@given(sparse=sparse_GCN(), seed=seeds)
def test_the_bits_are_the_same_key_by_key_as_query_by_query(sparse: Sparse, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, rows = sparse.values(rng, 3), sparse.rows(rng, 3)
    runs = []
    for cache in (0, 2**20):
        with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
            some = replace(tuning.current, cache_bytes=cache, short_keys=0)
            patch.setattr(tuning, "current", some)
            pattern = engine.pattern(sparse.indices, sparse.keys)
            gathered = engine.gather_matmul(sparse.weights, pattern, values)
            scattered = engine.scatter_matmul(sparse.weights, pattern, rows, np.ones_like(values))
            runs.append((gathered, scattered))
    for by_key, by_query in zip(*runs, strict=True):
        assert_same_bits(by_key, by_query)


@given(sparse=sparse_GCN(), seed=seeds)
def test_a_range_of_a_gradient_has_the_bits_of_the_whole(sparse: Sparse, seed: int) -> None:
    """So that no result depends on how many workers share the work."""
    rows = sparse.rows(np.random.default_rng(seed), 3)
    zeros = np.zeros((len(rows), sparse.keys, 3))
    some = replace(tuning.current, short_keys=0)  # what is short is not shared
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(tuning, "current", some)
        pattern = engine.pattern(sparse.indices, sparse.keys)
        whole = engine.scatter_matmul(sparse.weights, pattern, rows, zeros.copy())
        for first in range(sparse.keys):
            out = zeros[:, first : first + 2].copy()
            out = engine.scatter_matmul(sparse.weights, pattern, rows, out, first)
            assert_same_bits(out, np.ascontiguousarray(whole[:, first : first + 2]))
