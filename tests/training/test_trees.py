"""Trees of parameters: mapping keeps their form, paths lead back to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topk_np.training import flatten, tree_map, unflatten

names = st.text("abc_0", min_size=1, max_size=3)
trees = st.dictionaries(
    names,
    st.recursive(
        st.integers(), lambda t: st.dictionaries(names, t, min_size=1, max_size=3), max_leaves=6
    ),
    max_size=3,
)


@given(tree=trees)
def test_paths_lead_back_to_the_tree(tree: Any) -> None:
    flat = flatten(tree)
    assert unflatten(flat) == tree
    assert list(flatten(unflatten(flat))) == list(flat)


@given(tree=trees)
def test_mapping_meets_the_leaves_at_the_same_place(tree: Any) -> None:
    doubled = tree_map(lambda leaf: 2 * leaf, tree)
    assert flatten(doubled) == {path: 2 * leaf for path, leaf in flatten(tree).items()}
    assert flatten(tree_map(lambda a, b: b - a, tree, doubled)) == flatten(tree)


@pytest.mark.parametrize(
    ("tree", "other", "message"),
    [
        ({"a": {"b": 1}}, {"a": {"c": 1}}, "trees differ at a: only one has 'b', 'c'"),
        ({"a": {"b": {}}}, {"a": {"b": 1}}, "trees differ at a.b: a dict, and an array"),
        ({"a": 1}, {"a": {}}, "trees differ at a: an array, and a dict"),
        (1, {}, "trees differ at the root: an array, and a dict"),
    ],
)
def test_trees_that_differ_are_refused(tree: Any, other: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree_map(lambda *leaves: leaves, tree, other)


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ([1], ValueError, "tree must be a dict, got list"),
        ({"a": {0: 1}}, TypeError, "names in a tree must be strings, got 0"),
        ({"a.b": 1}, ValueError, "must not be empty or have a dot, got 'a.b'"),
        ({"": 1}, ValueError, "must not be empty or have a dot, got ''"),
    ],
)
def test_names_that_are_no_path_are_refused(
    tree: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        flatten(tree)


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"a..b": 1}, r"must not be empty, got 'a\.\.b'"),
        ({"a": 1, "a.b": 2}, "'a.b' goes through 'a', which is a leaf"),
        ({"a.b": 1, "a": 2}, "'a' is a leaf and a branch"),
    ],
)
def test_paths_that_make_no_tree_are_refused(flat: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unflatten(flat)
