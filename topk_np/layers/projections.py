"""The projections of multi-head attention, into heads and back, and the checks of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from array_api_compat import device

from topk_np._namespace import (
    Array,
    array_namespace,
    cast,
    check_flag,
    check_floats,
    check_integer,
    check_ndim,
    check_same,
    compute_dtype,
    plain,
)
from topk_np.layers.linear import affine, affine_bwd, check_vector
from topk_np.layers.rope import Rope, Rotation, check_positions, check_rope


class MultiheadWeights(NamedTuple):
    """
    Weights of multi-head attention: matrices (out, in), as checkpoints store them, and biases.

    There are H heads of width W in G groups; the H/G heads of a group share a key and a value head.
    G follows from the rows of `key`: it is H for plain heads, and 1 for multi-query attention.
    """

    query: Array
    """(H W, E)"""
    key: Array
    """(G W, E_kv)"""
    value: Array
    """(G V, E_kv)"""
    out: Array
    """(E_out, H V)"""
    query_bias: Array | None = None
    key_bias: Array | None = None
    value_bias: Array | None = None
    out_bias: Array | None = None


class MultiheadGrads(NamedTuple):
    """Gradients of multi-head attention, each with the shape and dtype of its input."""

    x: Array
    weights: MultiheadWeights
    context: Array | None = None
    """None if no context was given."""
    bias: Array | None = None
    """As `AttentionGrads.bias`."""


@dataclass(frozen=True, eq=False)
class Projections:
    """The checked inputs of multi-head attention, from which query, key and value are made."""

    x: Array
    weights: MultiheadWeights
    context: Array | None
    heads: int
    groups: int
    query_rotation: Rotation | None
    key_rotation: Rotation | None

    def project(self) -> tuple[Array, Array, Array]:
        """Make query (..., G, H/G, Q, W), key (..., G, 1, N, W) and value (..., G, 1, N, V)."""
        w, source = self.weights, self.x if self.context is None else self.context
        query = self._split(affine(self.x, w.query, w.query_bias), self.heads)
        key = self._split(affine(source, w.key, w.key_bias), self.groups)
        value = self._split(affine(source, w.value, w.value_bias), self.groups)
        if self.query_rotation is not None and self.key_rotation is not None:
            query, key = self.query_rotation.turn(query), self.key_rotation.turn(key)
        return query, key, value

    def project_bwd(self, dquery: Array, dkey: Array, dvalue: Array) -> MultiheadGrads:
        """Gradients of `project`; those of the output projection are None."""
        xp = array_namespace(self.x)
        w, source = self.weights, self.x if self.context is None else self.context
        if self.query_rotation is not None and self.key_rotation is not None:
            dquery = self.query_rotation.turn_back(dquery)
            dkey = self.key_rotation.turn_back(dkey)
        drows = merge_heads(dquery, grouped=True)
        dx, query, query_bias = affine_bwd(self.x, w.query, w.query_bias, drows)
        drows = merge_heads(dkey, grouped=True)
        from_key, key, key_bias = affine_bwd(source, w.key, w.key_bias, drows)
        drows = merge_heads(dvalue, grouped=True)
        from_value, value, value_bias = affine_bwd(source, w.value, w.value_bias, drows)
        dweights = MultiheadWeights(query, key, value, None, query_bias, key_bias, value_bias)
        if self.context is None:
            return MultiheadGrads(cast(xp, dx + from_key + from_value, self.x.dtype), dweights)
        dx, dcontext = (cast(xp, d, self.x.dtype) for d in (dx, from_key + from_value))
        return MultiheadGrads(dx, dweights, dcontext)

    def _split(self, rows: Array, heads: int) -> Array:
        return split_heads(rows, heads, groups=self.groups)


def check_multihead(
    x: Array,
    weights: MultiheadWeights,
    context: Array | None,
    heads: int,
    rope: Rope | None,
    query_positions: int | Array | None,
    key_positions: int | Array | None,
    options: dict[str, Any],
) -> Projections:
    """Check the inputs of multi-head attention, and the options that attention does not check."""
    if not isinstance(weights, MultiheadWeights):
        raise TypeError(f"weights must be a MultiheadWeights, got {type(weights).__name__}")
    named = {f"weights.{name}": array for name, array in weights._asdict().items()}
    biases = {name: named.pop(name) for name in list(named) if name.endswith("_bias")}
    xp = check_floats({"x": x, **named}, {"context": context, **biases})
    check_ndim("x", x, 2, "(..., Q, E)")
    if context is not None:
        check_ndim("context", context, 2, "(..., N, E_kv)")
    source_name, source = ("x", x) if context is None else ("context", context)
    heads = check_integer("heads", heads, least=1)
    for name, matrix in named.items():
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ValueError(
                f"{name} must be a matrix (out, in), not empty, got {tuple(matrix.shape)}"
            )
        bias = biases[f"{name}_bias"]
        check_vector(f"{name}_bias", bias, f"the rows of {name}", matrix.shape[0])
    check_same("weights.query's last axis", weights.query.shape[1], "that of x", x.shape[-1])
    for name in ("key", "value"):
        got = getattr(weights, name).shape[1]
        check_same(f"weights.{name}'s last axis", got, f"that of {source_name}", source.shape[-1])
    width = _divided("weights.query", weights.query.shape[0], "heads", heads)
    groups = _divided("weights.key", weights.key.shape[0], "the width of a head", width)
    if heads % groups:
        raise ValueError(
            f"the key heads must divide the {heads} query heads, got {groups}: weights.key has "
            f"{weights.key.shape[0]} rows, {width} a head"
        )
    value_width = _divided("weights.value", weights.value.shape[0], "the key heads", groups)
    wanted = heads * value_width
    check_same("weights.out's last axis", weights.out.shape[1], "heads times V", wanted)
    x, context = plain(x), None if context is None else plain(context)
    weights = MultiheadWeights(*(None if array is None else plain(array) for array in weights))
    if rope is None:
        for name, given in (("query_positions", query_positions), ("key_positions", key_positions)):
            if given is not None:
                raise ValueError(f"{name} must be None without rope, which they are for")
        return Projections(x, weights, context, heads, groups, None, None)
    check_rope(rope, width)

    def rotation(name: str, positions: int | Array, of: Array) -> Rotation:
        """The rotation of rows (..., Q), with axes for groups and their heads."""
        at = check_positions(name, positions, of, tuple(of.shape[:-1]))
        return Rotation.at(at[..., None, None, :], rope, width, compute_dtype(xp, x))

    if key_positions is None:
        given = query_positions is not None and context is None
        key_positions = query_positions if given else 0
    if query_positions is None:
        query_offset = options.get("query_offset")
        query_positions = 0 if query_offset is None else query_offset
        first: Any = query_positions  # an array has one for each leading axis
        if getattr(first, "shape", ()) != ():
            count = xp.arange(x.shape[-2], dtype=xp.int64, device=device(x))
            query_positions = xp.astype(first, xp.int64)[..., None] + count
    return Projections(
        x,
        weights,
        context,
        heads,
        groups,
        rotation("query_positions", query_positions, x),
        rotation("key_positions", key_positions, source),
    )


def _divided(name: str, rows: int, what: str, by: int) -> int:
    """Divide a number of rows, which has to be a multiple."""
    if rows % by:
        raise ValueError(f"{name} must have a multiple of {what}, {by}, as rows, got {rows}")
    return rows // by


def split_heads(x: Array, heads: int, /, *, groups: int | None = None) -> Array:
    """
    Cut the features of each row into heads.

    Parameters
    ----------
    x : array (..., Q, H W)
        Rows, in which the W features of a head lie together.
    heads : int
        Number of heads H.
    groups : int, optional
        Number G of groups of consecutive heads that share a key and value; they get an axis of
        their own.

    Returns
    -------
    array (..., H, Q, W), or (..., G, H/G, Q, W) with `groups`
        With `groups` a key (..., G, 1, N, W) broadcasts to the heads of its group.

    Raises
    ------
    TypeError
        If `x` is not an array, or `heads` or `groups` is not an integer.
    ValueError
        If `groups` does not divide `heads`, or `heads` does not divide the features.

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
    Put the features of all heads side by side: the inverse of `split_heads`.

    Parameters
    ----------
    x : array (..., H, Q, W), or (..., G, H/G, Q, W) where `grouped`
        The output of each head for each row.
    grouped : bool, default False
        True if the groups of heads have an axis of their own.

    Returns
    -------
    array (..., Q, H W)
        Rows.

    Raises
    ------
    TypeError
        If `x` is not an array or `grouped` is not a bool.
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
