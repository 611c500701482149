"""The checks at the door: inputs and options of the public functions, made into a `Call`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar, Unpack

import numpy as np

from topk_np._namespace import (
    LARGEST,
    Array,
    check_choice,
    check_device,
    check_flag,
    check_floats,
    check_integer,
    check_ndim,
    check_number,
    check_same,
    compute_dtype,
    namespace_of,
    plain,
)
from topk_np.activations import ACTIVATIONS, Activation
from topk_np.kernels import engine
from topk_np.options.bias import ArrayBias, make_bias
from topk_np.options.call import Call
from topk_np.options.chunk import Batch, Option, Positions, Shape, check_lead_integers
from topk_np.options.dropout import WeightDropout, make_dropout
from topk_np.options.masks import Mask, PairFunction, check_lengths, check_mask, check_window
from topk_np.options.relative import ALiBi, SlopeBias, T5Bias, TableBias
from topk_np.options.rules import AlwaysKept, KeepRule, check_always_keep, check_share

SELECTS = ("activation", "score")

Function = TypeVar("Function", bound=Callable[..., object])


class AttentionOptions(TypedDict, total=False):
    """The options that all attention functions share; described in `topk_attention`."""

    mask: Array | PairFunction | None
    is_causal: bool
    query_offset: int | Array | None
    window: tuple[int | None, int | None] | None
    query_lengths: int | Array | None
    key_lengths: int | Array | None
    bias: Array | ALiBi | T5Bias | PairFunction | None
    scale: float | None
    softcap: float | None
    dropout: tuple[float, int] | None
    always_keep: tuple[int, int] | None


def check_known(given: Mapping[str, object], options: type, whose: str) -> None:
    """Check that all names that were given are among the `options`, a TypedDict."""
    unknown = given.keys() - options.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"got an unexpected keyword argument {min(unknown)!r}; the options of {whose} are "
            + ", ".join(options.__annotations__)
        )


def spell_out(options: type) -> Callable[[Function], Function]:
    """
    Show each of the `options`, a TypedDict, in the signature of a function that takes them all.

    They come before the function's own `chunk_size`, or last.
    """
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if name == "is_causal" else None,
            annotation=annotation.__forward_arg__,
        )
        for name, annotation in options.__annotations__.items()
    ]

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        last = next((i for i, p in enumerate(own) if p.name == "chunk_size"), len(own))
        parameters = [*own[:last], *shared, *own[last:]]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return decorate


def check_rule(k: Any, p: Any = None, max_k: Any = None) -> KeepRule:
    """Check the options `k`, `p` and `max_k`: how many keys a query keeps."""
    if k is None or p is not None or max_k is not None:
        return check_share(k, p, max_k)
    return KeepRule(check_integer("k", k, least=1))


def attention_call(
    query: Array,
    key: Array,
    value: Array,
    /,
    rule: tuple[Any, Any, Any] | None = None,
    joined: bool = True,
    **options: Unpack[AttentionOptions],
) -> Call:
    """
    The inputs and options of attention, checked.

    `rule` holds `k`, `p` and `max_k`; without it, it is dense attention. Batch axes are `joined`
    where no array has to be copied for it.
    """
    check_known(options, AttentionOptions, "attention")
    given = options.get
    xp = check_floats({"query": query, "key": key, "value": value})
    check_ndim("query", query, 2, "(..., Q, D)")
    check_ndim("key", key, 2, "(..., N, D)")
    check_ndim("value", value, 2, "(..., N, V)")
    check_same("key's last axis", key.shape[-1], "query's", query.shape[-1])
    check_same("value's second last axis", value.shape[-2], "key's", key.shape[-2])
    query, key, value = plain(query), plain(key), plain(value)
    shapes = {"query": tuple(query.shape), "key": tuple(key.shape), "value": tuple(value.shape)}
    lead, *others = (shape[:-2] for shape in shapes.values())
    if any(other != lead for other in others):
        lead = _broadcast_leads(lead, *others)
    (queries, width), keys = query.shape[-2:], key.shape[-2]

    is_causal = check_flag("is_causal", given("is_causal", False))
    mask, window, bias = given("mask"), given("window"), given("bias")
    always_keep, offset = given("always_keep"), given("query_offset")
    left, right = (None, None) if window is None else check_window(window)
    sinks, local = (0, 0) if always_keep is None else check_always_keep(always_keep, keys)
    if offset is not None:
        offset = check_lead_integers("query_offset", offset, query, lead)
    elif queries != keys:
        by_position = {
            "is_causal": is_causal,
            "window": window is not None,
            "a mask function": callable(mask),
            "a bias by position": callable(bias) or isinstance(bias, (ALiBi, T5Bias)),
            "always_keep": local > 0,
        }
        _check_offset_is_given(by_position, queries, keys)
    positions = Positions(0 if offset is None else offset)
    if mask is not None and not callable(mask):
        mask = check_mask(query, mask, (*lead, queries, keys))
    lengths: list[Any] = [given("query_lengths"), given("key_lengths")]
    if lengths[0] is not None:
        lengths[0] = check_lengths("query_lengths", lengths[0], query, lead, queries)
    if lengths[1] is not None:
        lengths[1] = check_lengths("key_lengths", lengths[1], query, lead, keys)
    added = None if bias is None else make_bias(query, bias, positions, lead, keys)
    dropout = None if given("dropout") is None else make_dropout(given("dropout"))
    scale, softcap = given("scale"), given("softcap")
    scale = 1 / math.sqrt(max(width, 1)) if scale is None else check_number("scale", scale)
    softcap = None if softcap is None else _check_softcap(softcap, scale)
    kept = None if rule is None else check_rule(*rule)

    # Everything as arrays over the same batch axes.
    arrays = [query, key, value]
    arrays += [] if mask is None or callable(mask) else [mask]
    arrays += [added.array] if isinstance(added, ArrayBias) else []
    tables = [added.array] if isinstance(added, TableBias) else []
    batch = Batch.of(lead, arrays, tables) if joined else Batch.apart(lead)
    query, key, value = (batch.fold(xp, array) for array in (query, key, value))
    inputs = {"query": query, "key": key, "value": value}
    if isinstance(positions.offset, np.ndarray):
        positions = Positions(batch.fold_numbers(positions.offset))
    lengths = [n if n is None or isinstance(n, int) else batch.fold_numbers(n) for n in lengths]
    working: list[Option] = []
    if added is not None:
        working.append(_folded(added, batch, positions, xp))
        if added.gradient:
            inputs[added.gradient] = vars(working[0])["array"]
    hiding = (mask, left, 0 if is_causal else right, *lengths)
    if any(one is not None for one in hiding):
        pairs = mask if mask is None or callable(mask) else batch.fold(xp, mask)
        working.append(Mask(positions, pairs, *hiding[1:]))
    if dropout is not None:
        working.append(WeightDropout(dropout, positions, batch.shape))
    always = None
    if sinks or local:
        of_head = keys if lengths[1] is None else lengths[1]
        always = AlwaysKept(sinks, local, of_head, positions)
    return Call(
        xp=xp,
        ops=engine(xp),
        dtype=compute_dtype(xp, query),
        query=query,
        key=key,
        value=value,
        batch=batch,
        queries=queries,
        keys=keys,
        slots=keys if kept is None else min(kept.k + sinks + local, keys),
        inputs=inputs,
        shapes=shapes,
        activation=ACTIVATIONS["softmax"],
        rule=kept,
        scale=scale,
        softcap=softcap,
        options=tuple(working),
        always=always,
    )


def _folded(bias: Option, batch: Batch, positions: Positions, xp: Any) -> Option:
    """A bias with its arrays over the batch axes."""
    if isinstance(bias, ArrayBias):
        return ArrayBias(batch.fold(xp, bias.array), bias.shape)
    if isinstance(bias, TableBias):
        own = vars(bias) | {"array": batch.fold(xp, bias.array), "positions": positions}
        return TableBias(**own)
    if isinstance(bias, SlopeBias):
        slopes = np.broadcast_to(bias.slopes, batch.lead).reshape(batch.shape)
        return SlopeBias(slopes, positions)
    return type(bias)(**(vars(bias) | {"positions": positions}))


def _broadcast_leads(query: Shape, key: Shape, value: Shape) -> Shape:
    if query == key == value:
        return query
    try:
        return np.broadcast_shapes(query, key, value)
    except ValueError:
        raise ValueError(
            "the leading axes of query, key and value must broadcast, got "
            f"{query}, {key} and {value}"
        ) from None


def _check_offset_is_given(by_position: dict[str, bool], queries: int, keys: int) -> None:
    """Check that nothing goes by position where Q and N differ and `query_offset` is missing."""
    needed_by = next((name for name, used in by_position.items() if used), None)
    if needed_by is not None:
        raise ValueError(
            f"query_offset, the position of the first query, is required with {needed_by} when "
            f"the numbers of queries and keys differ, got {queries} queries and {keys} keys"
        )


def _check_softcap(softcap: Any, scale: float) -> float:
    cap = check_number("softcap", softcap)
    if cap <= 0:
        raise ValueError(f"softcap must be above 0, got {cap}")
    if abs(scale) > cap * LARGEST:
        raise ValueError(f"softcap must be so large that scale / softcap is finite, got {cap}")
    return cap


def ffn_call(
    x: Array,
    keys: Array,
    values: Array,
    rule: tuple[Any] | None,
    activation: str | Activation,
    key_bias: Array | None,
    value_bias: Array | None,
    gate: Array | None,
    select: str = "score",
) -> Call:
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
    if not isinstance(activation, Activation):
        activation = ACTIVATIONS[check_choice("activation", activation, tuple(sorted(ACTIVATIONS)))]
    kept = None if rule is None else check_rule(*rule)
    tokens = math.prod(x.shape[:-1])
    inputs = {
        "query": xp.reshape(plain(x), (1, tokens, width)),
        "key": plain(keys)[None, ...],
        "value": plain(values)[None, ...],
        "gate": None if gate is None else plain(gate)[None, ...],
        "key_bias": None if key_bias is None else plain(key_bias)[None, :, None],
        "value_bias": None if value_bias is None else plain(value_bias)[None, None, :],
    }
    # Softmax without a gate keeps the order of the scores.
    in_order = gate is None and activation is ACTIVATIONS["softmax"]
    return Call(
        xp=xp,
        ops=engine(xp),
        dtype=compute_dtype(xp, x),
        **inputs,
        batch=Batch.apart(()),
        queries=tokens,
        keys=units,
        slots=units if kept is None else min(kept.k, units),
        inputs={name: array for name, array in inputs.items() if array is not None},
        shapes={},
        activation=activation,
        rule=kept,
        ranks_weights=select == "activation" and not in_order,
    )


def _check_matrix(name: str, array: Array, legend: str) -> tuple[int, int]:
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape {legend}, got {tuple(array.shape)}")
    return array.shape[0], array.shape[1]


def check_dout(like: Array, shape: tuple[int, ...], dout: Array) -> Array:
    """Check the gradient of an output, of the given shape and with the dtype of `like`."""
    return check_grad("dout", "the output", like, shape, like.dtype, dout)


def check_grad(
    name: str, of: str, like: Array, shape: tuple[int, ...], dtype: Any, given: Array
) -> Array:
    """Check the gradient of something, of the given shape and dtype."""
    xp = namespace_of({of: like, name: given})
    if given is None:
        raise TypeError(f"{name} must be an array, got None")
    if given.dtype != dtype:
        wanted = getattr(dtype, "__name__", dtype)
        raise TypeError(f"{name} must have the dtype of {of}, {wanted}, got {given.dtype}")
    if xp is not np:
        check_device(name, given, of, like)
    if tuple(given.shape) != shape:
        raise ValueError(f"{name} must have the shape of {of}, {shape}, got {tuple(given.shape)}")
    return plain(given)
