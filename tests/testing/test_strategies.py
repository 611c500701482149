"""`attention_problems` draws what it says, and shrinks to what can be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import find, given, settings

from topk_np.testing import AttentionProblem, attention_problems
from topk_np.testing.definition import allowed_pairs, solve

ONCE = settings(max_examples=2000, database=None)


@given(attention_problems(max_length=4, dtype="float32", options=["k", "mask", "bias"]))
def test_problems_are_of_the_dtype_lengths_and_options_asked_for(problem: AttentionProblem) -> None:
    assert {a.dtype.name for a in (*problem.arrays, problem.dout)} == {"float32"}
    assert max(problem.queries, problem.keys) <= 4
    assert "k" in problem.options
    assert problem.options.keys() <= {"k", "mask", "bias"}
    assert solve(problem).out.shape == problem.dout.shape


@given(attention_problems(min_length=1, options=["k", "is_causal"], required=["is_causal"]))
def test_without_an_offset_there_are_as_many_keys_as_queries(problem: AttentionProblem) -> None:
    assert problem.options["is_causal"]
    assert problem.queries == problem.keys


WANTED: dict[str, Callable[[AttentionProblem], Any]] = {
    "no queries": lambda p: p.queries == 0,
    "no keys": lambda p: p.keys == 0 < p.queries,
    "a tie at the edge of the k best": lambda p: p.keys and p.queries and not solve(p).clear.all(),
    "a query that may attend to nothing": lambda p: (
        p.keys and p.queries and not allowed_pairs(p).any(axis=-1).all()
    ),
    "scores of thousands": lambda p: np.abs(p.query @ p.key.mT).max(initial=0) > 1000,
    "an offset for each head": lambda p: np.ndim(p.options.get("query_offset", 0)) > 0,
}


@pytest.mark.parametrize("what", WANTED)
def test_it_finds_and_shrinks_what_goes_wrong_elsewhere(what: str) -> None:
    problem = find(attention_problems(), WANTED[what], settings=ONCE)
    assert problem.queries + problem.keys <= 5, problem


def test_a_problem_is_printed_as_the_code_that_makes_it() -> None:
    mask = np.array([[True, False]])
    problem = AttentionProblem(
        np.ones((1, 1)),
        np.array([[np.nan], [np.inf]]),
        np.ones((2, 0)),
        np.ones((1, 0)),
        {"mask": mask},
    )
    again = eval(repr(problem), {"np": np, "AttentionProblem": AttentionProblem})
    for array, other in zip(
        (*problem.arrays, problem.dout), (*again.arrays, again.dout), strict=True
    ):
        np.testing.assert_array_equal(array, other)
        assert array.dtype == other.dtype
    np.testing.assert_array_equal(again.options["mask"], mask)


def test_an_option_that_is_not_known_is_named() -> None:
    with pytest.raises(ValueError, match=r"options must be among k, mask.*got 'colour'"):
        find(attention_problems(options=["colour"]), lambda p: True)
    with pytest.raises(TypeError, match="options must be several names, got the string 'mask'"):
        find(attention_problems(options="mask"), lambda p: True)
