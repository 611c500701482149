"""The kinds of attention by name: dense, in chunks of queries, top-k, or with random features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from topk_np._namespace import Array, array_namespace, check_choice
from topk_np.attention import (
    DenseAttentionResiduals,
    TopKAttentionResiduals,
    dense_attention,
    dense_attention_bwd,
    dense_attention_fwd,
    topk_attention,
    topk_attention_bwd,
    topk_attention_fwd,
)
from topk_np.baselines.performer import (
    PerformerResiduals,
    performer_attention,
    performer_attention_bwd,
    performer_attention_fwd,
)
from topk_np.baselines.rfa import (
    RFAResiduals,
    rfa_attention,
    rfa_attention_bwd,
    rfa_attention_fwd,
)
from topk_np.options.relative import ALiBi, T5Bias

CHUNK = 1024  # queries at once in chunked attention, as in the paper
NO_HEADS = ("query_offset", "query_lengths", "key_lengths")  # over batch axes, without heads


class Kind(NamedTuple):
    """The two functions of a kind of attention that go forward."""

    attend: Callable[..., Array]
    fwd: Callable[..., tuple[Array, Any]]


_DENSE = Kind(dense_attention, dense_attention_fwd)
KINDS = {
    "dense": _DENSE,
    "chunked": _DENSE,
    "topk": Kind(topk_attention, topk_attention_fwd),
    "performer": Kind(performer_attention, performer_attention_fwd),
    "rfa": Kind(rfa_attention, rfa_attention_fwd),
}

AttentionResiduals = (
    TopKAttentionResiduals | DenseAttentionResiduals | PerformerResiduals | RFAResiduals
)
_BACKWARD: dict[type, Callable[..., Any]] = {
    TopKAttentionResiduals: topk_attention_bwd,
    DenseAttentionResiduals: dense_attention_bwd,
    PerformerResiduals: performer_attention_bwd,
    RFAResiduals: rfa_attention_bwd,
}


def choose_kind(
    attention: str | None, k: int | None, options: dict[str, Any], /
) -> tuple[Kind, dict[str, Any]]:
    """The functions of a kind, by default top-k if `k` or `p` is given, and their options."""
    ranking = "k" if k is not None else "p" if options.get("p") is not None else None
    if attention is None:
        attention = "dense" if ranking is None else "topk"
    check_kind(attention)
    if attention == "topk":
        options = {"k": k, **options}
    elif ranking is not None:
        raise ValueError(
            f"{ranking} must be None with attention={attention!r}, which ranks no keys"
        )
    elif attention == "chunked" and all(
        options.get(name) is None for name in ("chunk_size", "memory_budget")
    ):
        options = {**options, "chunk_size": CHUNK}
    return KINDS[attention], options


def check_kind(attention: str) -> None:
    """Check that `attention` is the name of a kind."""
    check_choice("attention", attention, tuple(KINDS))


def attend_bwd(residuals: AttentionResiduals, dout: Array, /) -> Any:
    """Gradients of attention of any kind, with the fields query, key and value."""
    return _BACKWARD[type(residuals)](residuals, dout)


def group_options(options: dict[str, Any], heads: int, groups: int) -> dict[str, Any]:
    """Turn options over heads (..., H, Q, N) into options over groups (..., G, H/G, Q, N)."""
    if options.get("return_lse", False) is not False:
        raise TypeError(
            "return_lse is not an option of multi-head attention, which mixes the heads"
        )
    unset = {"p": None, "max_k": None, "return_lse": False}
    grouped = {
        name: given for name, given in options.items() if given is not unset.get(name, unset)
    }
    for name in ("mask", "bias"):
        given = grouped.get(name)
        if isinstance(given, ALiBi):
            if getattr(given.slopes, "ndim", 0) > 0:
                grouped[name] = ALiBi(_split("bias.slopes", given.slopes, -1, heads, groups))
        elif isinstance(given, T5Bias):
            if getattr(given.table, "ndim", 0) > 1:
                table = _split("bias.table", given.table, -1, heads, groups)
                grouped[name] = replace(given, table=table)
        elif getattr(given, "ndim", 0) > 2:
            grouped[name] = _split(name, given, -3, heads, groups)
    for name in NO_HEADS:
        if getattr(grouped.get(name), "shape", ()) != ():
            grouped[name] = grouped[name][..., None, None]
    return grouped


def bias_shape(options: dict[str, Any]) -> tuple[int, ...]:
    """The shape in which the bias was given, and its gradient is returned."""
    bias = options.get("bias")
    return tuple(getattr(bias.table if isinstance(bias, T5Bias) else bias, "shape", ()))


def _split(name: str, array: Array, axis: int, heads: int, groups: int) -> Array:
    """Split the axis of the heads, or of length 1, into groups and the heads of a group."""
    xp, shape = array_namespace(array), tuple(array.shape)
    place = len(shape) + axis
    if place < 0 or shape[place] not in (1, heads):
        raise ValueError(f"{name} must have an axis of the {heads} heads, got shape {shape}")
    own = (1, 1) if shape[place] == 1 else (groups, heads // groups)
    return xp.reshape(array, (*shape[:place], *own, *shape[place + 1 :]))
