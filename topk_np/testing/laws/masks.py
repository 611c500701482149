"""Properties of the options that say who may attend to whom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from topk_np.testing.law import Law
from topk_np.testing.laws.base import Attention, agrees
from topk_np.testing.problems import AttentionProblem


def mask(subject: Attention, problem: AttentionProblem) -> None:
    """A query attends where a boolean mask is True, with weights that sum to 1."""
    agrees(subject, problem)


def mask_function(subject: Attention, problem: AttentionProblem) -> None:
    """A mask may be a function of the positions of queries and keys."""
    agrees(subject, problem)


def causal(subject: Attention, problem: AttentionProblem) -> None:
    """A causal query attends to its own position and those before."""
    agrees(subject, problem)


def causal_offset(subject: Attention, problem: AttentionProblem) -> None:
    """The first query is at position query_offset among the keys."""
    agrees(subject, problem)


def window(subject: Attention, problem: AttentionProblem) -> None:
    """A query at i attends to i - left to i + right; None is no limit."""
    agrees(subject, problem)


def query_lengths(subject: Attention, problem: AttentionProblem) -> None:
    """Padding behind the queries changes nothing for those before it."""
    agrees(subject, problem)


def key_lengths(subject: Attention, problem: AttentionProblem) -> None:
    """Padding behind the keys is attended to by nobody."""
    agrees(subject, problem)


def masked_rows(subject: Attention, problem: AttentionProblem) -> None:
    """A query that may attend to no key gives zeros, not NaN and not an average."""
    agrees(subject, problem, lambda wanted: ~wanted.keeping)


def masked_nan(subject: Attention, problem: AttentionProblem) -> None:
    """A masked key contributes nothing, not even if it and its value are NaN."""
    agrees(subject, problem)


def with_a_hidden_query(subject: Attention) -> SearchStrategy[AttentionProblem]:
    """Problems whose first query may attend to no key."""

    def hide(problem: AttentionProblem) -> AttentionProblem:
        allowed = np.array(np.broadcast_to(problem.options["mask"], _pairs(problem)))
        allowed[..., 0, :] = False
        return problem.given(mask=allowed)

    return subject.problems("mask").map(hide)


def with_a_hidden_key(subject: Attention) -> SearchStrategy[AttentionProblem]:
    """Problems whose last key and value are NaN, which no query may attend to."""

    def hide(problem: AttentionProblem) -> AttentionProblem:
        key, value = problem.key.copy(), problem.value.copy()
        key[..., -1, :], value[..., -1, :] = np.nan, np.nan
        problem = replace(problem, key=key, value=value)
        if "key_lengths" in problem.options:
            return problem.given(key_lengths=problem.keys - 1)
        allowed = np.array(np.broadcast_to(problem.options["mask"], _pairs(problem)))
        allowed[..., -1] = False
        return problem.given(mask=allowed)

    ways = [subject.problems(name) for name in ("mask", "key_lengths") if subject.has(name)]
    return st.one_of(ways).map(hide)


def _pairs(problem: AttentionProblem) -> tuple[int, ...]:
    return (*problem.lead, problem.queries, problem.keys)


class HidesKeys(Law[Attention]):
    """A law for who has one of two options."""

    def lacking(self, subject: Attention) -> str:
        """The options that the property needs and the implementation lacks; empty if none."""
        if subject.has("mask") or subject.has("key_lengths"):
            return super().lacking(subject)
        return "it has neither option mask nor key_lengths"


LAWS = (
    Law(mask, lambda s: s.problems("mask"), ("mask",)),
    Law(
        mask_function,
        lambda s: s.problems("mask_function", optional=("query_offset",)),
        ("mask_function",),
    ),
    Law(
        causal,
        lambda s: s.problems("is_causal").map(lambda p: p.without("query_offset")),
        ("is_causal",),
    ),
    Law(
        causal_offset,
        lambda s: s.problems("is_causal", "query_offset"),
        ("is_causal", "query_offset"),
    ),
    Law(window, lambda s: s.problems("window", optional=("query_offset",)), ("window",)),
    Law(query_lengths, lambda s: s.problems("query_lengths"), ("query_lengths",)),
    Law(key_lengths, lambda s: s.problems("key_lengths"), ("key_lengths",)),
    Law(masked_rows, with_a_hidden_query, ("mask",)),
    HidesKeys(masked_nan, with_a_hidden_key),
)
