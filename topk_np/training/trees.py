"""Nested dicts of arrays, as the parameters of a network are: mapped, and named by their paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Tree: TypeAlias = Any  # dict[str, Tree], or a leaf: an array


def tree_map(function: Callable[..., Any], tree: Tree, /, *others: Tree) -> Tree:
    """
    Call a function with each leaf of a tree, and the leaves at the same place in others.

    Parameters
    ----------
    function : callable
        ``function(leaf, *other_leaves) -> new leaf``.
    tree : nested dict
        What is not a dict is a leaf.
    *others : nested dict
        Trees with the same names.

    Returns
    -------
    nested dict
        What the function returned, in the order and with the names of `tree`.

    Raises
    ------
    ValueError
        If the trees differ in their names; the message says where.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.training import tree_map
    >>> params = {"head": {"weight": np.ones(2), "bias": np.zeros(2)}}
    >>> tree_map(lambda array: array + 1, params)
    {'head': {'weight': array([2., 2.]), 'bias': array([1., 1.])}}
    """
    return _map(function, "", tree, *others)


def flatten(tree: Tree, /) -> dict[str, Any]:
    """
    Name each leaf of a tree by its path.

    Parameters
    ----------
    tree : nested dict
        Names are strings without a dot, and not empty.

    Returns
    -------
    dict
        Leaves in the order of the tree, with the names on the way to each joined by dots.

    Raises
    ------
    TypeError
        If a name is not a string.
    ValueError
        If a name is empty or has a dot, or `tree` itself is a leaf.

    See Also
    --------
    unflatten : the way back.

    Examples
    --------
    >>> from topk_np.training import flatten
    >>> flatten({"head": {"weight": 1, "bias": 2}, "scale": 3})
    {'head.weight': 1, 'head.bias': 2, 'scale': 3}
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"tree must be a dict, got {type(tree).__name__}")
    flat: dict[str, Any] = {}
    for name, branch in tree.items():
        if not isinstance(name, str):
            raise TypeError(f"names in a tree must be strings, got {name!r}")
        if not name or "." in name:
            raise ValueError(f"names in a tree must not be empty or have a dot, got {name!r}")
        if isinstance(branch, Mapping):
            flat |= {f"{name}.{path}": leaf for path, leaf in flatten(branch).items()}
        else:
            flat[name] = branch
    return flat


def unflatten(flat: Mapping[str, Any], /) -> dict[str, Any]:
    """
    Make a tree of leaves that are named by their paths: undo `flatten`.

    Branches without leaves are not in a flat dict, and do not come back.

    Parameters
    ----------
    flat : mapping
        From paths, names joined by dots, to leaves.

    Returns
    -------
    nested dict
        The tree, in the order of `flat`.

    Raises
    ------
    ValueError
        If a path has an empty name, or is a leaf and a branch at once.

    Examples
    --------
    >>> from topk_np.training import unflatten
    >>> unflatten({"head.weight": 1, "head.bias": 2, "scale": 3})
    {'head': {'weight': 1, 'bias': 2}, 'scale': 3}
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *branches, last = path.split(".")
        if not all((*branches, last)):
            raise ValueError(f"names in a path must not be empty, got {path!r}")
        node = tree
        for name in branches:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r} goes through {name!r}, which is a leaf")
        if last in node:
            raise ValueError(f"{path!r} is a leaf and a branch")
        node[last] = leaf
    return tree


def _map(function: Callable[..., Any], path: str, tree: Tree, *others: Tree) -> Tree:
    if not isinstance(tree, Mapping):
        for other in others:
            if isinstance(other, Mapping):
                raise ValueError(f"trees differ at {path or 'the root'}: an array, and a dict")
        return function(tree, *others)
    for other in others:
        if not isinstance(other, Mapping):
            raise ValueError(f"trees differ at {path or 'the root'}: a dict, and an array")
        if tree.keys() != other.keys():
            odd = ", ".join(map(repr, sorted(map(str, tree.keys() ^ other.keys()))))
            raise ValueError(f"trees differ at {path or 'the root'}: only one has {odd}")
    return {
        name: _map(
            function, f"{path}.{name}".lstrip("."), tree[name], *(other[name] for other in others)
        )
        for name in tree
    }
