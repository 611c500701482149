"""The blocks of a T5 model, each with its own k, and the biases by distance that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from topk_np import T5Bias
from topk_np._namespace import Array
from topk_np.layers.attention_kinds import bias_shape, group_options
from topk_np.models.blocks import Block
from topk_np.models.model import Model
from topk_np.models.per_layer import LayerK, per_layer
from topk_np.models.sublayers import Heads, Units
from topk_np.models.tokens import check_mask, check_tokens

PARTS = {"attention_k": ("encoder", "decoder", "cross"), "ffn_k": ("encoder", "decoder")}


@dataclass(frozen=True)
class T5Config:
    """What the weights do not say themselves.

    Attributes
    ----------
    heads : int
        Attention heads.
    norm_eps : float
        Added to the mean square in RMSNorm.
    activation : {"relu", "gelu", "gelu_tanh", "silu"}
        Of the feed-forward layers, which are gated if they have a gate.
    max_distance : int
        From where on all distances share a bucket.
    output_scale : float
        What goes into the output layer is multiplied by this: D ** -0.5 where that is tied to the
        embedding.
    start, padding : int
        The token before the decoder's first, and the one that stands where there is none.
    """

    heads: int
    norm_eps: float
    activation: str
    max_distance: int
    output_scale: float
    start: int
    padding: int


T5: TypeAlias = Model[T5Config]
"""
Its parameters: ``embedding`` (T, D); ``encoder`` and ``decoder``, each with ``bias`` (B, H),
``layers`` and ``norm`` (D,); and ``head`` (T, D) if that is not tied to the embedding. A layer has
``attention_norm``, ``attention`` with ``query``, ``key`` and ``value`` (H W, D) and ``out``
(D, H W), in the decoder ``cross_norm`` and ``cross`` likewise, ``ffn_norm``, and ``ffn`` with
``keys``, ``values`` and from v1.1 on ``gate`` (F, D).
"""


class LayerKs(NamedTuple):
    """The keys and units that the layers keep."""

    encoder: list[tuple[int | None, int | None]]
    decoder: list[tuple[int | None, int | None, int | None]]
    """Of its own keys, of the encoder's, and of the units."""


def check_ks(model: T5, /) -> LayerKs:
    """The keys and units that the layers keep."""
    depth = {part: len(model.params[part]["layers"]) for part in ("encoder", "decoder")}

    def ks(name: str, k: Any, part: str, of: str) -> list[int | None]:
        return per_layer(*_of_part(name, k, part), depth[of])

    attention, units = model.attention_k, model.ffn_k
    return LayerKs(
        list(
            zip(
                ks("attention_k", attention, "encoder", "encoder"),
                ks("ffn_k", units, "encoder", "encoder"),
                strict=True,
            )
        ),
        list(
            zip(
                ks("attention_k", attention, "decoder", "decoder"),
                ks("attention_k", attention, "cross", "decoder"),
                ks("ffn_k", units, "decoder", "decoder"),
                strict=True,
            )
        ),
    )


def _of_part(name: str, k: Any, part: str) -> tuple[str, LayerK]:
    """What errors call the k of a part, and that: one for all parts, or each its own."""
    parts = PARTS[name]
    if not isinstance(k, Mapping) or not k.keys() & set(PARTS["attention_k"]):
        return name, k
    if unknown := k.keys() - set(parts):
        raise ValueError(
            f"{name} must have entries for {', '.join(parts)} only, got {min(map(str, unknown))!r}"
        )
    return f"{name}[{part!r}]", k.get(part)


def encoder_blocks(
    model: T5, tokens: Array, mask: Array | None, workers: int | Executor | None
) -> list[Block]:
    """The encoder's blocks, for checked tokens and mask."""
    check_tokens(model.params["embedding"], tokens)
    if mask is not None:
        check_mask("mask", mask, tokens)
    how = _heads(model, "encoder", mask, workers)
    return [
        Block(model.config.norm_eps, how(k), _units(model, units, workers))
        for k, units in check_ks(model).encoder
    ]


def decoder_blocks(
    model: T5,
    tokens: Array,
    encoded: Array,
    mask: Array | None,
    first: int,
    workers: int | Executor | None,
) -> list[Block]:
    """The decoder's blocks, for checked tokens, the first of which has position `first`."""
    check_tokens(model.params["embedding"], tokens)
    if mask is not None:
        check_mask("mask", mask, encoded[..., 0])
    how = _heads(model, "decoder", None, workers, is_causal=True, query_offset=first)
    cross = _heads(model, None, mask, workers)
    return [
        Block(model.config.norm_eps, how(k), _units(model, units, workers), cross(cross_k))
        for k, cross_k, units in check_ks(model).decoder
    ]


def _heads(
    model: T5, part: str | None, mask: Array | None, workers: int | Executor | None, **options: Any
) -> Callable[[int | None], Heads]:
    """The heads of a layer as a function of k; those of a part have its bias by distance."""
    config = model.config
    options |= {"scale": 1.0, "workers": workers}
    if mask is not None:
        options["mask"] = mask[..., None, None, :]
    if part is not None:
        table, both = model.params[part]["bias"], part == "encoder"
        options["bias"] = T5Bias(table, bidirectional=both, max_distance=config.max_distance)
    grouped = group_options(options, config.heads, config.heads)
    shape = bias_shape(options)

    def heads(k: int | None) -> Heads:
        return Heads(config.heads, config.heads, k, grouped, bias_shape=shape)

    return heads


def _units(model: T5, k: int | None, workers: int | Executor | None) -> Units:
    return Units(model.config.activation, k, model.ffn_select, workers)
