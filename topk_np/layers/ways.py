"""How heads attend, by name: dense, in chunks of queries, top-k, or with random features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from topk_np._namespace import Array, check_choice
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

CHUNK = 1024  # queries at once in chunked attention, as in the paper


class Way(NamedTuple):
    """The two functions that go forward."""

    attend: Callable[..., Array]
    fwd: Callable[..., tuple[Array, Any]]


_DENSE = Way(dense_attention, dense_attention_fwd)
WAYS = {
    "dense": _DENSE,
    "chunked": _DENSE,
    "topk": Way(topk_attention, topk_attention_fwd),
    "performer": Way(performer_attention, performer_attention_fwd),
    "rfa": Way(rfa_attention, rfa_attention_fwd),
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


def choose(
    attention: str | None, k: int | None, options: dict[str, Any], /
) -> tuple[Way, dict[str, Any]]:
    """The functions of a way to attend, by default top-k where keys are ranked, and the options."""
    ranking = "k" if k is not None else "p" if options.get("p") is not None else None
    if attention is None:
        attention = "dense" if ranking is None else "topk"
    check_way(attention)
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
    return WAYS[attention], options


def check_way(attention: str) -> None:
    """Check that this is the name of a way to attend."""
    check_choice("attention", attention, tuple(WAYS))


def attend_bwd(residuals: AttentionResiduals, dout: Array, /) -> Any:
    """The gradients of any of the ways, with the fields query, key and value."""
    return _BACKWARD[type(residuals)](residuals, dout)
