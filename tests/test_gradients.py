"""Gradients are summed over chunks, heads and ranges: all of them, in one order, wave by wave."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np
from tests.oracles import assert_close, assert_rounded_once, assert_same_bits, sum_to_shape
from tests.strategies import leading_axes, seeds
from topk_np.kernels import engine, tuning
from topk_np.options.call import Call
from topk_np.options.check import attention_call
from topk_np.options.chunk import Chunk, Heads
from topk_np.schedule.gradients import Gradients, Rows, Scattered, Slots, sum_gradients
from topk_np.schedule.plan import slices
from topk_np.schedule.threads import WorkerTeam


@pytest.fixture(scope="module", autouse=True)
def short_ranges() -> Iterator[None]:
    """Cut gradients of more than 3 keys into ranges."""
    with pytest.MonkeyPatch.context() as patch:
        limits = replace(tuning.current, least_range=2, short_keys=3)
        patch.setattr(tuning, "current", limits)
        yield


def dense_form(weights: np.ndarray, indices: np.ndarray, keys: int) -> np.ndarray:
    """The matrices (G, C, N) that weights and indices (G, C, K) stand for."""
    dense = np.zeros((*weights.shape[:2], keys + 1), weights.dtype)
    np.put_along_axis(dense, np.where(indices < 0, keys, indices).astype(int), weights, axis=2)
    return dense[..., :keys]


@dataclass(frozen=True)
class Pieces:
    """What a chunk contributes."""

    query: np.ndarray
    """(G, C, 2)"""
    weights: np.ndarray
    """(G, C, K), as the next"""
    indices: np.ndarray
    rows: np.ndarray
    """(G, C, 2), scattered to the keys"""
    value: np.ndarray
    """(G, N, 2)"""


@dataclass(frozen=True)
class Case:
    """A call, and what each of its chunks contributes to each gradient."""

    call: Call
    chunks: list[Chunk]
    pieces: list[Pieces]

    def contribute(self, chunk: Chunk, grads: Gradients) -> None:
        pieces = self.pieces[self.chunks.index(chunk)]
        grads.add_rows("query", chunk.rows.start, pieces.query)
        pattern = self.call.ops.pattern(pieces.indices, self.call.keys)
        grads.scatter("key", pieces.weights, pieces.indices, pattern, pieces.rows)
        grads.add_rows("value", 0, pieces.value)

    def sums(self, workers: int = 1, in_flight: int | None = None) -> dict[str, np.ndarray]:
        with WorkerTeam(workers) as team:
            return sum_gradients(self.call, self.contribute, self.chunks, team, in_flight)

    def expected(self) -> dict[str, np.ndarray]:
        """The sums, head by head and then over broadcast axes."""
        call = self.call
        full = {
            name: np.zeros((*call.batch.shape, *array.shape[-2:]), call.dtype)
            for name, array in call.inputs.items()
        }
        for chunk, pieces in zip(self.chunks, self.pieces, strict=True):
            place = chunk.heads.within(call.batch.shape)
            full["query"][(*place, chunk.rows)] += pieces.query
            dense = dense_form(pieces.weights, pieces.indices, call.keys)
            full["key"][place] += dense.mT @ pieces.rows
            full["value"][place] += pieces.value
        return {name: sum_to_shape(full[name], a.shape) for name, a in call.inputs.items()}


def chunks_of(call: Call, size: int, heads: int) -> list[Chunk]:
    """All chunks of so many queries of so many heads, which follow each other on the last axis."""
    *outer, length = call.batch.shape
    stacks = [
        Heads((*first, part.start), len(outer), part.stop - part.start)
        for first in np.ndindex(*outer)
        for part in slices(length, heads)
    ]
    return [Chunk(*own) for own in itertools.product(stacks, slices(call.queries, size))]


@st.composite
def cases(draw: st.DrawFn, dtype: Any = np.float64) -> Case:
    """Random contributions to the gradients of a call of any shape."""
    *leads, _ = draw(leading_axes())
    queries, keys = draw(st.integers(1, 7)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(seeds))
    query, key, value = (
        np.zeros((*lead, length, 2), dtype)
        for lead, length in zip(leads, (queries, keys, keys), strict=True)
    )
    call = attention_call(query, key, value, (1, None, None))
    chunks = chunks_of(call, draw(st.integers(1, queries)), draw(st.integers(1, 4)))
    pieces = []
    for (_, _, heads), rows in chunks:
        size, slots = rows.stop - rows.start, int(rng.integers(1, keys + 1))
        indices = np.full((heads, size, slots), -1, np.int32)
        for place in np.ndindex(heads, size):
            used = int(rng.integers(0, slots + 1))
            indices[(*place, slice(used))] = np.sort(rng.choice(keys, used, replace=False))
        normal = {
            name: rng.standard_normal((heads, *shape)).astype(call.dtype)
            for name, shape in (
                ("query", (size, 2)),
                ("weights", (size, slots)),
                ("rows", (size, 2)),
                ("value", (keys, 2)),
            )
        }
        normal["weights"][indices < 0] = 0
        pieces.append(Pieces(**normal, indices=indices))
    return Case(call, chunks, pieces)


@given(case=cases(), workers=st.integers(1, 3), in_flight=st.none() | st.integers(1, 9))
def test_the_sum_of_all_contributions_is_the_gradient(
    case: Case, workers: int, in_flight: int | None
) -> None:
    sums, expected = case.sums(workers, in_flight), case.expected()
    assert sums.keys() == expected.keys()
    for name, total in sums.items():
        assert_close(total, expected[name], size=100.0)


@given(case=cases())
def test_neither_threads_nor_waves_change_a_bit(case: Case) -> None:
    runs = [case.sums(*how) for how in itertools.product((1, 2, 8), (1, 3, 8))]
    for sums, (name, total) in itertools.product(runs[1:], runs[0].items()):
        assert_same_bits(sums[name], total)


@given(case=cases(np.float16), in_flight=st.integers(1, 9))
def test_gradients_of_half_precision_are_rounded_once(case: Case, in_flight: int) -> None:
    for name, total in case.sums(2, in_flight).items():
        assert total.dtype == np.float16
        assert_rounded_once(total, case.expected()[name])


@given(case=cases(), in_flight=st.integers(1, 9))
def test_at_most_a_wave_of_contributions_waits(case: Case, in_flight: int) -> None:
    """Those of the next chunks are made once the last ones are added."""
    made: list[Chunk] = []
    added = 0
    added_before: list[bool] = []

    def contribute(chunk: Chunk, grads: Gradients) -> None:
        added_before.append(added >= len(made) // in_flight * in_flight)
        made.append(chunk)
        grads.waiting.append((grads.sums.place("key", chunk.heads), Seen()))

    class Seen:
        heads = 1

        def shared(self) -> list[Any]:
            return [self]

        def add_to(self, total: np.ndarray, first: int, fresh: bool) -> np.ndarray:
            nonlocal added
            added += first == 0
            return total

    with WorkerTeam(1) as team:
        sum_gradients(case.call, contribute, case.chunks, team, in_flight)
    assert all(added_before)
    assert made == case.chunks


@given(case=cases())
def test_contributions_in_full_precision_are_added_to_what_is_returned(case: Case) -> None:
    totals: list[np.ndarray] = []
    add = Rows.add_to

    def seen(rows: Rows, total: np.ndarray, first: int, fresh: bool) -> Any:
        totals.append(total)
        return add(rows, total, first, fresh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "add_to", seen)
        sums = case.sums()
    assert totals
    for total in totals:
        assert any(np.shares_memory(total, sums[name]) for name in ("query", "value"))


def test_slots_are_added_to_arrays_that_are_made_anew_as_to_those_that_change() -> None:
    weights = np.array([[[1.0, 2.0], [4.0, 0.0]]])
    indices = np.array([[[0, 2], [1, -1]]], np.int32)
    expected = np.array([[[1.0, 1.0, 1.0], [2.0, 1.0, 3.0], [1.0, 5.0, 1.0]]])
    for xp in (np, array_api_strict):
        slots = Slots(engine(xp), xp.asarray(weights), xp.asarray(indices), start=11)
        total = slots.add_to(xp.ones((1, 3, 3)), 10, fresh=False)
        assert np.array_equal(np.asarray(total), expected)


def test_gradients_of_another_library_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 2, 9, 4))
    options: dict[str, Any] = {"k": 3, "chunk_size": 4}
    grads = []
    for xp in (np, array_api_strict):
        arrays = (xp.asarray(array) for array in (query, key[:1], value))
        out, residuals = topk_np.topk_attention_fwd(*arrays, **options)
        grads.append(topk_np.topk_attention_bwd(residuals, xp.ones(out.shape))[:3])
    for ours, theirs in zip(*grads, strict=True):
        np.testing.assert_allclose(np.asarray(theirs), ours, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("threads", "heads", "ranges"), [(1, 1, 1), (3, 1, 3), (3, 2, 2)])
@pytest.mark.parametrize("keys", [12, 3])
def test_long_gradients_are_cut_into_ranges_for_all_threads(
    monkeypatch: pytest.MonkeyPatch, threads: int, heads: int, ranges: int, keys: int
) -> None:
    """Those of few keys are not: a part of them might be rounded differently."""
    x = np.zeros((heads, keys, 2))
    call = attention_call(np.zeros((heads, 12, 2)), x, x, (1, None, None))
    indices, lengths = np.full((1, 6, 1), -1, np.int32), []
    pattern = call.ops.pattern(indices, keys)

    def seen(own: Scattered, total: np.ndarray, first: int, fresh: bool) -> np.ndarray:
        lengths.append(total.shape[1])
        return total

    def contribute(chunk: Chunk, grads: Gradients) -> None:
        grads.scatter("key", np.zeros((1, 6, 1)), indices, pattern, np.zeros((1, 6, 2)))

    monkeypatch.setattr(Scattered, "add_to", seen)
    with WorkerTeam(threads) as team:
        sum_gradients(call, contribute, chunks_of(call, 6, 1), team, 2 * heads)
    if keys == 3:
        ranges = 1
    assert lengths == [keys // ranges] * (2 * heads * ranges)
