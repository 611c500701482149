"""ListOps: expressions, their values, and what simple guesses reach."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topk_np.tasks.listops import (
    OPERATIONS,
    PRESETS,
    TOKENS,
    ListOpsSettings,
    decode,
    encode,
    evaluate,
    listops,
)

SMALL = ListOpsSettings(5, 14, depth=3, arguments=4)


def expressions() -> st.SearchStrategy[Any]:
    """Trees: a digit, or an operator and a list of trees."""
    return st.recursive(
        st.integers(0, 9),
        lambda inner: st.tuples(st.sampled_from(sorted(OPERATIONS)), st.lists(inner, min_size=1)),
        max_leaves=12,
    )


def text_of(tree: Any) -> str:
    if isinstance(tree, int):
        return str(tree)
    return f"{tree[0]} {' '.join(map(text_of, tree[1]))} ]"


def value_of(tree: Any) -> int:
    """The value by recursion, with functions of the standard library."""
    if isinstance(tree, int):
        return tree
    digits = [value_of(argument) for argument in tree[1]]
    match tree[0]:
        case "[MIN":
            return min(digits)
        case "[MAX":
            return max(digits)
        case "[MED":
            return int(statistics.median(digits))
    return sum(digits) % 10


@given(tree=expressions())
def test_values_are_those_of_recursion(tree: Any) -> None:
    tokens = encode(text_of(tree))
    assert decode(tokens) == text_of(tree)
    assert evaluate(tokens) == value_of(tree)


@given(tree=expressions(), place=st.integers(0, 30))
def test_what_is_cut_off_or_added_to_is_refused(tree: Any, place: int) -> None:
    tokens = encode(text_of(tree))
    for broken in (tokens[: place % len(tokens)], [*tokens, 3], [*tokens, len(TOKENS) - 1]):
        with pytest.raises(ValueError, match="expression must be well formed"):
            evaluate(broken)


@pytest.mark.parametrize("settings", [SMALL, *list(PRESETS.values())[:3]], ids=str)
def test_expressions_are_distinct_and_as_the_settings_say(settings: ListOpsSettings) -> None:
    task = listops(settings, train=60, validation=20, test=20, seed=3)
    seen = set()
    for split in (task.train, task.validation, task.test):
        for tokens, length, label in zip(split.tokens, split.lengths, split.labels, strict=True):
            text = decode(tokens)
            seen.add(text)
            assert settings.shortest <= length <= settings.longest
            assert len(text.split()) == length
            assert evaluate(tokens[:length].tolist()) == label
            level = deepest = 0
            for token in text.split():
                level += (token in OPERATIONS) - (token == "]")
                deepest = max(deepest, level)
            assert deepest <= settings.depth - 1
    assert len(seen) == 100


def test_operators_have_two_arguments_to_the_most() -> None:
    flat = ListOpsSettings(1, 99, depth=2, arguments=4)
    counts = listops(flat, train=800, validation=1, test=1).train.lengths - 2
    assert set(counts.tolist()) == {2, 3, 4}


def test_a_seed_decides_everything() -> None:
    one, same, other = (
        listops(SMALL, train=30, validation=5, test=5, seed=seed) for seed in (1, 1, 2)
    )
    assert np.array_equal(one.train.tokens, same.train.tokens)
    assert one.baselines == same.baselines
    assert not np.array_equal(one.train.labels, other.train.labels)


def test_guesses_get_better_with_what_they_know() -> None:
    baselines = listops("12-48", train=3000, validation=1, test=1000).baselines
    assert list(baselines) == ["majority", "root operator", "direct digits"]
    assert 0.1 < baselines["majority"] < 0.2
    assert 0.24 < baselines["root operator"] < 0.33
    assert 0.40 < baselines["direct digits"] < 0.50


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"settings": "long"}, ValueError, "settings must be one of 12-48, .*, got 'long'"),
        ({"settings": 3}, TypeError, "settings must be a string or ListOpsSettings, got int"),
        ({"train": 0}, ValueError, "train must be at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        listops(**arguments)


def test_settings_that_cannot_be_met() -> None:
    with pytest.raises(ValueError, match="must allow for 402 different expressions, found 400 in"):
        listops(ListOpsSettings(1, 4, depth=2, arguments=2), train=400, validation=1, test=1)
    with pytest.raises(ValueError, match="longest must be at least 9, got 8"):
        ListOpsSettings(9, 8, depth=2, arguments=2)
    with pytest.raises(ValueError, match="operator_share must be from 0 to 1, got 2"):
        ListOpsSettings(1, 8, depth=2, arguments=2, operator_share=2)


def test_text_of_other_tokens() -> None:
    with pytest.raises(ValueError, match=r"text must be made of 0 1 .*, got 'MIN 3'"):
        encode("MIN 3")
