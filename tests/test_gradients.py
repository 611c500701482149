"""Gradients are summed over chunks, heads and ranges: all terms, in one order, wave by wave."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np.gradients
from tests.oracles import assert_close, assert_same_bits, sum_to_shape
from tests.strategies import leading_axes, seeds
from tests.test_rowsparse import dense_form
from topk_np.activations import ACTIVATIONS
from topk_np.gradients import Addend, sum_gradients
from topk_np.positions import Head
from topk_np.problem import Problem
from topk_np.terms import RowsTerm, SlotsTerm, SparseTerm
from topk_np.work import Task
from topk_np.workers import Crew


@dataclass(frozen=True)
class Case:
    """A problem, and what each chunk contributes to each gradient."""

    problem: Problem
    chunk: int
    query_terms: dict[tuple[Head, int], np.ndarray]
    key_terms: dict[tuple[Head, int], tuple[Any, ...]]
    value_terms: dict[tuple[Head, int], np.ndarray]

    @property
    def tasks(self) -> list[Task]:
        return self.problem.tasks(self.chunk)

    def terms_of(self, task: Task) -> list[Addend]:
        (head,), rows = task
        place = head, rows.start
        return [
            ("query", head, RowsTerm(self.query_terms[place], rows.start)),
            ("key", head, SparseTerm(*self.key_terms[place])),
            ("value", head, RowsTerm(self.value_terms[place], 0)),
        ]

    def expected(self) -> dict[str, np.ndarray]:
        """The sums, head by head and then over broadcast axes."""
        problem = self.problem
        full = {
            name: np.zeros((*problem.batch, *array.shape[-2:]))
            for name, array in problem.inputs.items()
        }
        for (head, start), rows in self.query_terms.items():
            full["query"][head][start : start + len(rows)] += rows
            weights, indices, counts, matrix = self.key_terms[head, start]
            full["key"][head] += dense_form(weights, indices, counts, problem.keys).T @ matrix
            full["value"][head] += self.value_terms[head, start]
        return {name: sum_to_shape(full[name], a.shape) for name, a in problem.inputs.items()}


@st.composite
def cases_QN(draw: st.DrawFn) -> Case:
    """Any problem's shapes, with random terms."""
    *leads, batch = draw(leading_axes())
    queries, keys = draw(st.integers(1, 7)), draw(st.integers(1, 12))
    chunk = draw(st.integers(1, queries))
    rng = np.random.default_rng(draw(seeds))
    query, key, value = (
        np.zeros((*lead, length, 2))
        for lead, length in zip(leads, (queries, keys, keys), strict=True)
    )
    problem = Problem(np, query, key, value, batch, ACTIVATIONS["softmax"])
    query_terms, key_terms, value_terms = {}, {}, {}
    for (head,), rows in problem.tasks(chunk):
        size, place = rows.stop - rows.start, (head, rows.start)
        query_terms[place] = rng.standard_normal((size, 2))
        value_terms[place] = rng.standard_normal((keys, 2))
        slots = int(rng.integers(1, keys + 1))
        counts = rng.integers(0, slots + 1, size).astype(np.int32)
        indices = np.full((size, slots), -1, np.int32)
        for i, count in enumerate(counts):
            indices[i, :count] = np.sort(rng.choice(keys, count, replace=False))
        weights = np.where(indices < 0, 0.0, rng.standard_normal(indices.shape))
        key_terms[place] = weights, indices, counts, rng.standard_normal((size, 2))
    return Case(problem, chunk, query_terms, key_terms, value_terms)


@pytest.fixture(scope="module", autouse=True)
def short_ranges() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk_np.gradients, "LEAST_RANGE", 2)
        yield


@given(case=cases_QN(), wave_size=st.integers(1, 9))
def test_the_sum_of_all_terms_is_the_gradient(case: Case, wave_size: int) -> None:
    with Crew(2) as crew:
        sums = sum_gradients(case.problem, case.terms_of, case.tasks, crew, wave_size)
    expected = case.expected()
    assert sums.keys() == expected.keys()
    for name, total in sums.items():
        assert_close(total, expected[name], size=100.0)


@given(case=cases_QN())
def test_neither_threads_nor_waves_change_a_bit(case: Case) -> None:
    runs = []
    for workers, wave_size in itertools.product((1, 2, 8), (1, 3, 8)):
        with Crew(workers) as crew:
            runs.append(sum_gradients(case.problem, case.terms_of, case.tasks, crew, wave_size))
    for sums, (name, total) in itertools.product(runs[1:], runs[0].items()):
        assert_same_bits(sums[name], total)


@given(case=cases_QN(), wave_size=st.integers(1, 9))
def test_at_most_a_wave_of_terms_is_alive(case: Case, wave_size: int) -> None:
    """Counted by the calls: terms of the next wave are made once the last ones are added."""
    made: list[Task] = []
    added_before: list[bool] = []
    totals: list[float] = []

    class Counting(RowsTerm):
        def add_to(self, total: np.ndarray, first: int) -> np.ndarray:
            totals.append(0.0)
            added: np.ndarray = super().add_to(total, first)
            return added

    def terms_of(task: Task) -> list[Addend]:
        (head,), rows = task
        added_before.append(len(totals) >= len(made) // wave_size * wave_size)
        made.append(task)
        return [("query", head, Counting(case.query_terms[head, rows.start], rows.start))]

    with Crew(1) as crew:
        sum_gradients(case.problem, terms_of, case.tasks, crew, wave_size)
    assert all(added_before)
    assert made == case.tasks


@given(case=cases_QN())
def test_terms_in_full_precision_are_added_to_what_is_returned(case: Case) -> None:
    totals: list[np.ndarray] = []

    class Seeing(RowsTerm):
        def add_to(self, total: np.ndarray, first: int) -> np.ndarray:
            totals.append(total)
            added: np.ndarray = super().add_to(total, first)
            return added

    def terms_of(task: Task) -> list[Addend]:
        (head,), rows = task
        return [("query", head, Seeing(case.query_terms[head, rows.start], rows.start))]

    with Crew(1) as crew:
        sums = sum_gradients(case.problem, terms_of, case.tasks, crew)
    assert all(np.shares_memory(total, sums["query"]) for total in totals)


def test_slots_are_added_to_arrays_that_are_made_anew_as_to_those_that_change() -> None:
    weights, indices = np.array([[1.0, 2.0], [4.0, 0.0]]), np.array([[0, 2], [1, -1]], np.int32)
    expected = np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 3.0], [1.0, 5.0, 1.0]])
    for xp in (np, array_api_strict):
        counts = xp.asarray([2, 1], dtype=xp.int32)
        term = SlotsTerm(xp.asarray(weights), xp.asarray(indices), counts, start=11)
        total = term.add_to(xp.ones((3, 3)), 10)
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
def test_long_gradients_are_cut_into_ranges_for_all_threads(
    threads: int, heads: int, ranges: int
) -> None:
    x = np.zeros((heads, 12, 2))
    problem = Problem(np, x, x, x, (heads,), ACTIVATIONS["softmax"])
    nothing = np.zeros((12, 1)), np.full((12, 1), -1, np.int32), np.zeros(12, np.int32), x[0]
    lengths: list[int] = []

    class Seeing(SparseTerm):
        def add_to(self, total: np.ndarray, first: int) -> np.ndarray:
            lengths.append(len(total))
            added: np.ndarray = super().add_to(total, first)
            return added

    def terms_of(task: Task) -> list[Addend]:
        return [("key", task.heads[0], Seeing(*nothing))]

    with Crew(threads) as crew:
        sum_gradients(problem, terms_of, problem.tasks(12), crew, heads)
    assert lengths == [12 // ranges] * (heads * ranges)
