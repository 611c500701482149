"""The inputs and options of the public functions, checked and made into a `Problem`."""

from __future__ import annotations

import math
from typing import Any, Unpack

import numpy as np

from topk_np._namespace import (
    LARGEST,
    Array,
    check_choice,
    check_device,
    check_flag,
    check_floats,
    check_ndim,
    check_number,
    check_same,
    namespace_of,
    plain,
)
from topk_np.activations import ACTIVATIONS
from topk_np.bias import make_bias
from topk_np.dropout import make_dropout
from topk_np.masking import Mask, check_window, make_mask
from topk_np.options import AttentionOptions, check_known
from topk_np.positions import Head, Positions, make_positions
from topk_np.problem import Problem
from topk_np.relative import ALiBi, T5Bias
from topk_np.rules import AlwaysKept, check_always_keep

SELECTS = ("activation", "score")


def attention_problem(
    query: Array, key: Array, value: Array, /, **options: Unpack[AttentionOptions]
) -> Problem:
    """The inputs and options of attention, checked."""
    check_known(options, AttentionOptions, "attention")
    xp = check_floats({"query": query, "key": key, "value": value})
    check_ndim("query", query, 2, "(..., Q, D)")
    check_ndim("key", key, 2, "(..., N, D)")
    check_ndim("value", value, 2, "(..., N, V)")
    check_same("key's last axis", key.shape[-1], "query's", query.shape[-1])
    check_same("value's second last axis", value.shape[-2], "key's", key.shape[-2])
    batch = _broadcast_leads(*(tuple(array.shape[:-2]) for array in (query, key, value)))
    (queries, width), keys = query.shape[-2:], key.shape[-2]
    given = options.get
    is_causal = check_flag("is_causal", given("is_causal", False))
    mask, window, bias = given("mask"), given("window"), given("bias")
    left, right = check_window(window)
    sinks, local = check_always_keep(given("always_keep"), keys)
    by_position = {
        "is_causal": is_causal,
        "window": window is not None,
        "a mask function": callable(mask),
        "a bias by position": callable(bias) or isinstance(bias, (ALiBi, T5Bias)),
        "always_keep": local > 0,
    }
    needed_by = next((name for name, used in by_position.items() if used), None)
    positions = make_positions(query, given("query_offset"), batch, queries, keys, needed_by)
    scale = given("scale")
    scale = 1 / math.sqrt(max(width, 1)) if scale is None else check_number("scale", scale)
    mask = make_mask(
        query,
        positions,
        mask,
        left,
        0 if is_causal else right,
        given("query_lengths"),
        given("key_lengths"),
        batch,
        keys,
    )
    return Problem(
        xp,
        plain(query),
        plain(key),
        plain(value),
        batch,
        ACTIVATIONS["softmax"],
        scale=scale,
        softcap=_check_softcap(given("softcap"), scale),
        positions=positions,
        bias=make_bias(query, bias, positions, batch, keys),
        dropout=make_dropout(given("dropout")),
        mask=mask,
        always=_always_kept(sinks, local, mask, positions, keys),
    )


def _broadcast_leads(query: Head, key: Head, value: Head) -> Head:
    if query == key == value:
        return query
    try:
        return np.broadcast_shapes(query, key, value)
    except ValueError:
        raise ValueError(
            "the leading axes of query, key and value must broadcast, got "
            f"{query}, {key} and {value}"
        ) from None


def _always_kept(
    sinks: int, local: int, mask: Mask | None, positions: Positions, keys: int
) -> AlwaysKept | None:
    if not sinks and not local:
        return None
    lengths = None if mask is None else mask.key_lengths
    return AlwaysKept(sinks, local, keys if lengths is None else lengths, positions)


def _check_softcap(softcap: Any, scale: float) -> float | None:
    if softcap is None:
        return None
    cap = check_number("softcap", softcap)
    if cap <= 0:
        raise ValueError(f"softcap must be above 0, got {cap}")
    if abs(scale) > cap * LARGEST:
        raise ValueError(f"softcap must be so large that scale / softcap is finite, got {cap}")
    return cap


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
    return _check_grad("dout", "the output", like, shape, like.dtype, dout)


def check_douts(problem: Problem, with_lse: bool, dout: Any) -> tuple[Array, Array | None]:
    """Check the gradient of what attention gave: of the output, and of `lse` where that is too."""
    if not with_lse:
        return check_dout(problem.query, problem.out_shape, dout), None
    if not isinstance(dout, (tuple, list)) or len(dout) != 2:
        got = len(dout) if isinstance(dout, (tuple, list)) else type(dout).__name__
        raise TypeError(f"dout must be a pair (dout, dlse) after return_lse=True, got {got}")
    shape = problem.out_shape[:-1]
    dlse = _check_grad("dlse", "lse", problem.query, shape, problem.dtype, dout[1])
    return check_dout(problem.query, problem.out_shape, dout[0]), dlse[..., None]


def _check_grad(
    name: str, of: str, like: Array, shape: tuple[int, ...], dtype: Any, given: Array
) -> Array:
    namespace_of({of: like, name: given})
    if given is None:
        raise TypeError(f"{name} must be an array, got None")
    if given.dtype != dtype:
        wanted = getattr(dtype, "__name__", dtype)
        raise TypeError(f"{name} must have the dtype of {of}, {wanted}, got {given.dtype}")
    check_device(name, given, of, like)
    if tuple(given.shape) != shape:
        raise ValueError(f"{name} must have the shape of {of}, {shape}, got {tuple(given.shape)}")
    return plain(given)
