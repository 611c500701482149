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
from topk_np.options.chunk import Batch, Positions, Shape, check_lead_integers
from topk_np.options.dropout import WeightDropout, make_dropout
from topk_np.options.masks import Mask, PairFunction, check_lengths, check_mask, check_window
from topk_np.options.option import Option
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
    """Check that what was given by name is among the `options`, a TypedDict."""
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
    lead = _broadcast_leads(*(tuple(array.shape[:-2]) for array in (query, key, value)))
    (queries, width), keys = query.shape[-2:], key.shape[-2]
    query, key, value = plain(query), plain(key), plain(value)

    is_causal = check_flag("is_causal", given("is_causal", False))
    left, right = check_window(given("window"))
    mask, bias, always_keep = given("mask"), given("bias"), given("always_keep")
    sinks, local = (0, 0) if always_keep is None else check_always_keep(always_keep, keys)
    positions = Positions(_check_offset(query, given("query_offset"), lead))
    if given("query_offset") is None and queries != keys:
        by_position = {
            "is_causal": is_causal,
            "window": given("window") is not None,
            "a mask function": callable(mask),
            "a bias by position": callable(bias) or isinstance(bias, (ALiBi, T5Bias)),
            "always_keep": local > 0,
        }
        _check_offset_is_given(by_position, queries, keys)
    if mask is not None and not callable(mask):
        mask = check_mask(query, mask, (*lead, queries, keys))
    lengths = [
        check_lengths(name, given(name), query, lead, most)
        for name, most in (("query_lengths", queries), ("key_lengths", keys))
    ]
    added = None if bias is None else make_bias(query, bias, positions, lead, keys)
    dropout = make_dropout(given("dropout"))
    scale = given("scale")
    scale = 1 / math.sqrt(max(width, 1)) if scale is None else check_number("scale", scale)
    softcap = None if given("softcap") is None else _check_softcap(given("softcap"), scale)

    # Everything as arrays over the same batch axes.
    arrays = [query, key, value]
    arrays += [] if mask is None or callable(mask) else [mask]
    arrays += [added.array] if isinstance(added, ArrayBias) else []
    tables = [added.array] if isinstance(added, TableBias) else []
    batch = Batch.of(lead, arrays, tables) if joined else Batch.apart(lead)
    positions = Positions(batch.fold_numbers(positions.offset))
    kept: list[Option] = []
    if added is not None:
        kept.append(_folded(added, batch, positions, xp))
    hiding = (mask, left, 0 if is_causal else right, *lengths)
    if any(one is not None for one in hiding):
        pairs = mask if mask is None or callable(mask) else batch.fold(xp, mask)
        folded = [None if numbers is None else batch.fold_numbers(numbers) for numbers in lengths]
        kept.append(Mask(positions, pairs, *hiding[1:3], *folded))
    if dropout is not None:
        kept.append(WeightDropout(dropout, positions, batch.shape))
    always = None
    if sinks or local:
        of_head = keys if lengths[1] is None else batch.fold_numbers(lengths[1])
        always = AlwaysKept(sinks, local, of_head, positions)
    return Call(
        xp,
        engine(xp),
        *(batch.fold(xp, array) for array in (query, key, value)),
        batch,
        compute_dtype(xp, query),
        {
            name: tuple(array.shape)
            for name, array in (("query", query), ("key", key), ("value", value))
        },
        ACTIVATIONS["softmax"],
        None if rule is None else check_rule(*rule),
        scale,
        softcap,
        tuple(kept),
        always,
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


def _check_offset(query: Array, offset: Any, lead: Shape) -> Any:
    return 0 if offset is None else check_lead_integers("query_offset", offset, query, lead)


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
    return Call(
        xp,
        engine(xp),
        xp.reshape(plain(x), (1, math.prod(x.shape[:-1]), width)),
        plain(keys)[None, ...],
        plain(values)[None, ...],
        Batch.apart(()),
        compute_dtype(xp, x),
        {},
        activation,
        None if rule is None else check_rule(*rule),
        gate=None if gate is None else plain(gate)[None, ...],
        key_bias=None if key_bias is None else plain(key_bias)[None, :, None],
        value_bias=None if value_bias is None else plain(value_bias)[None, None, :],
        # Softmax without a gate keeps the order of the scores.
        ranks_weights=select == "activation"
        and (gate is not None or activation is not ACTIVATIONS["softmax"]),
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
