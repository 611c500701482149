"""The inputs and options of the public functions, checked and made into a `Problem`."""

from __future__ import annotations

import math

import numpy as np

from topk_np._namespace import (
    Array,
    check_choice,
    check_device,
    check_floats,
    check_ndim,
    check_number,
    check_same,
    namespace_of,
    plain,
)
from topk_np.activations import ACTIVATIONS
from topk_np.masking import MaskFunction, make_mask
from topk_np.problem import Problem

SELECTS = ("activation", "score")


def attention_problem(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | MaskFunction | None,
    is_causal: bool,
    query_offset: int | Array | None,
    scale: float | None,
    window: tuple[int | None, int | None] | None = None,
) -> Problem:
    """The inputs and options of attention, checked."""
    xp = check_floats({"query": query, "key": key, "value": value})
    check_ndim("query", query, 2, "(..., Q, D)")
    check_ndim("key", key, 2, "(..., N, D)")
    check_ndim("value", value, 2, "(..., N, V)")
    check_same("key's last axis", key.shape[-1], "query's", query.shape[-1])
    check_same("value's second last axis", value.shape[-2], "key's", key.shape[-2])
    leads = [tuple(array.shape[:-2]) for array in (query, key, value)]
    try:
        batch = np.broadcast_shapes(*leads)
    except ValueError:
        raise ValueError(
            "the leading axes of query, key and value must broadcast, got "
            f"{leads[0]}, {leads[1]} and {leads[2]}"
        ) from None
    width = query.shape[-1]
    return Problem(
        xp,
        plain(query),
        plain(key),
        plain(value),
        batch,
        ACTIVATIONS["softmax"],
        scale=1 / math.sqrt(max(width, 1)) if scale is None else check_number("scale", scale),
        mask=make_mask(
            query,
            mask,
            is_causal,
            query_offset,
            window,
            batch,
            query.shape[-2],
            key.shape[-2],
        ),
    )


def ffn_problem(
    x: Array,
    keys: Array,
    values: Array,
    activation: str,
    key_bias: Array | None,
    value_bias: Array | None,
    gate: Array | None,
    select: str = "score",
) -> Problem:
    """The inputs and options of the feed-forward layer, checked; tokens are the queries."""
    optional = {"key_bias": key_bias, "value_bias": value_bias, "gate": gate}
    xp = check_floats({"x": x, "keys": keys, "values": values}, optional)
    check_ndim("x", x, 1, "(..., D)")
    units, width = _check_matrix("keys", keys, "(F, D)")
    out_units, out_width = _check_matrix("values", values, "(F, V)")
    check_same("keys' last axis", width, "x's", x.shape[-1])
    check_same("values' first axis", out_units, "keys'", units)
    for name, array, shape in (
        ("gate", gate, (units, width)),
        ("key_bias", key_bias, (units,)),
        ("value_bias", value_bias, (out_width,)),
    ):
        if array is not None and tuple(array.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}")
    check_choice("select", select, SELECTS)
    return Problem(
        xp,
        xp.reshape(plain(x), (math.prod(x.shape[:-1]), width)),
        plain(keys),
        plain(values),
        (),
        ACTIVATIONS[check_choice("activation", activation, tuple(sorted(ACTIVATIONS)))],
        gate=None if gate is None else plain(gate),
        key_bias=None if key_bias is None else plain(key_bias)[:, None],
        value_bias=None if value_bias is None else plain(value_bias)[None, :],
        # Softmax without a gate keeps the order of the scores.
        ranks_weights=select == "activation" and (gate is not None or activation != "softmax"),
    )


def _check_matrix(name: str, array: Array, legend: str) -> tuple[int, int]:
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape {legend}, got {tuple(array.shape)}")
    return array.shape[0], array.shape[1]


def check_dout(like: Array, shape: tuple[int, ...], dout: Array) -> Array:
    """Check the gradient of an output, of the given shape and with the dtype of `like`."""
    namespace_of({"the output": like, "dout": dout})
    if dout is None:
        raise TypeError("dout must be an array, got None")
    if dout.dtype != like.dtype:
        raise TypeError(f"dout must have the dtype of the output, {like.dtype}, got {dout.dtype}")
    check_device("dout", dout, "the output", like)
    if tuple(dout.shape) != shape:
        raise ValueError(
            f"dout must have the shape of the output, {shape}, got {tuple(dout.shape)}"
        )
    return plain(dout)
