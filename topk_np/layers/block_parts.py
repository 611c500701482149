"""The parts of a block as functions of x: self-attention, attention to a context, feed-forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from topk_np._namespace import Array
from topk_np.layers.block_config import PROJECTIONS, BlockConfig
from topk_np.layers.dropout import fold_seed
from topk_np.layers.feed_forward import feed_forward_fwd
from topk_np.layers.multihead import (
    MultiheadResiduals,
    multihead_attention_bwd,
    multihead_attention_fwd,
)
from topk_np.layers.named_norm import init_norm
from topk_np.layers.projections import MultiheadWeights
from topk_np.layers.residual import Params


class AttentionPartGrads(NamedTuple):
    """Gradients of attention, those of the parameters by their names."""

    x: Array
    params: dict[str, Array]
    context: Array | None


def attention_fwd(
    params: Params,
    config: BlockConfig,
    x: Array,
    context: Array | None = None,
    /,
    *,
    is_causal: bool = False,
    lengths: Array | None = None,
) -> tuple[Array, MultiheadResiduals]:
    """Attention to rows of x, or of a context, the first `lengths` of each sequence."""
    more = config.attention_options if context is None else config.cross_options
    options: dict[str, Any] = {**config.way, **more}
    if is_causal:
        options["is_causal"] = True
    if lengths is not None:
        options["key_lengths"] = lengths
    return multihead_attention_fwd(x, MultiheadWeights(**params), context, **options)


def attention_bwd(residuals: MultiheadResiduals, dout: Array, /) -> AttentionPartGrads:
    """Gradients of `attention_fwd`."""
    grads = multihead_attention_bwd(residuals, dout)
    named = {name: grad for name, grad in grads.weights._asdict().items() if grad is not None}
    return AttentionPartGrads(grads.x, named, grads.context)


def ffn_fwd(params: Params, config: BlockConfig, x: Array, /) -> tuple[Array, Any]:
    """The feed-forward layer."""
    return feed_forward_fwd(x, params, k=config.ffn_k, **config.ffn_options)


def part_seed(seed: int | None, part: int) -> int | None:
    """The seed of a part's dropout, from that of its block."""
    return None if seed is None else fold_seed(seed, part)


def check_block(params: Params, config: BlockConfig, parts: Sequence[str], /) -> None:
    """Check that there is a config, and parameters of each part and its norm."""
    if not isinstance(config, BlockConfig):
        raise TypeError(f"config must be a BlockConfig, got {type(config).__name__}")
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a dict of arrays, got {type(params).__name__}")
    wanted = [name for part in parts for name in (f"{part}_norm", part)]
    if sorted(params) != sorted(wanted):
        raise ValueError(
            f"params must have {', '.join(map(repr, wanted))}, "
            f"got {', '.join(map(repr, params)) or 'none'}"
        )
    for part in parts:
        norm = tuple(init_norm(config.norm, 0))
        _check_names(f"{part}_norm", params[f"{part}_norm"], norm)
        if part != "ffn":
            _check_names(part, params[part], PROJECTIONS, MultiheadWeights._fields)


def _check_names(
    part: str, params: Params, needed: Sequence[str], known: Sequence[str] | None = None
) -> None:
    """Check the names of a part's parameters; by default the needed ones are all that are known."""
    known = needed if known is None else known
    if not set(needed) <= set(params) <= set(known):
        raise ValueError(
            f"params[{part!r}] must have {', '.join(map(repr, needed))}"
            f"{'' if known == needed else ', and may have their biases'}, "
            f"got {', '.join(map(repr, params)) or 'none'}"
        )
