"""Rows of features as heads, and back."""

from __future__ import annotations

from topk_np._namespace import Array, array_namespace, check_flag, check_integer, check_ndim


def split_heads(x: Array, heads: int, /, *, groups: int | None = None) -> Array:
    """
    Cut the features of each row into heads.

    Parameters
    ----------
    x : array (..., Q, H W)
        Rows; a head's W features lie together.
    heads : int
        Number of heads H.
    groups : int, optional
        Groups G of consecutive heads that share a key and value, each as an axis of its own.

    Returns
    -------
    array (..., H, Q, W), or (..., G, H/G, Q, W) with `groups`
        So that a key (..., G, 1, N, W) broadcasts to the heads of its group.

    Raises
    ------
    TypeError
        If `x` is not an array, or `heads` or `groups` is not an integer.
    ValueError
        If `groups` does not divide `heads`, or `heads` not the features.

    Notes
    -----
    Nothing is copied where the library has views.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import split_heads
    >>> split_heads(np.arange(8).reshape(2, 4), 2)
    array([[[0, 1],
            [4, 5]],
    <BLANKLINE>
           [[2, 3],
            [6, 7]]])
    """
    xp = array_namespace(x)
    check_ndim("x", x, 2, "(..., Q, H W)")
    heads = check_integer("heads", heads, least=1)
    *lead, features = x.shape
    if features % heads:
        raise ValueError(f"heads must divide the {features} features of x, got {heads}")
    if groups is None:
        return xp.moveaxis(xp.reshape(x, (*lead, heads, features // heads)), -2, -3)
    if heads % check_integer("groups", groups, least=1):
        raise ValueError(f"groups must divide the {heads} heads, got {groups}")
    split = xp.reshape(x, (*lead, groups, heads // groups, features // heads))
    return xp.moveaxis(split, -4, -2)


def merge_heads(x: Array, /, *, grouped: bool = False) -> Array:
    """
    Put the features of all heads side by side: undo `split_heads`.

    Parameters
    ----------
    x : array (..., H, Q, W), or (..., G, H/G, Q, W) where `grouped`
        What heads give for each row.
    grouped : bool, default False
        Whether groups of heads are an axis of their own.

    Returns
    -------
    array (..., Q, H W)
        Rows.

    Raises
    ------
    TypeError
        If `x` is not an array or `grouped` not a bool.
    ValueError
        If `x` has too few axes.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import merge_heads, split_heads
    >>> merge_heads(split_heads(np.arange(8).reshape(2, 4), 2))
    array([[0, 1, 2, 3],
           [4, 5, 6, 7]])
    """
    xp = array_namespace(x)
    if check_flag("grouped", grouped):
        check_ndim("x", x, 4, "(..., G, H/G, Q, W)")
        rows = xp.moveaxis(x, -2, -4)
        *lead, groups, heads, width = rows.shape
        return xp.reshape(rows, (*lead, groups * heads * width))
    check_ndim("x", x, 3, "(..., H, Q, W)")
    rows = xp.moveaxis(x, -2, -3)
    *lead, heads, width = rows.shape
    return xp.reshape(rows, (*lead, heads * width))
