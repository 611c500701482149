"""Blocks of models, which are those of `topk_np.layers` with caches, and stacks of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from topk_np import KVCache
from topk_np._namespace import Array
from topk_np.layers import rms_norm_bwd, rms_norm_fwd
from topk_np.layers.blocks import (
    BlockResiduals,
    DecoderBlockResiduals,
    EncoderBlockResiduals,
    Layer,
    Part,
    Recomputed,
    attention_bwd,
    block_bwd,
    block_fwd,
)
from topk_np.layers.norms import norm_bwd, norm_fwd
from topk_np.models.model import Keep, Params, kept_of
from topk_np.models.sublayers import Heads, Units, attention_fwd, ffn_fwd
from topk_np.models.token_loss import add
from topk_np.models.variants import ffn_bwd


@dataclass(frozen=True)
class Block:
    """Settings of a block: all but its weights and its inputs."""

    eps: float
    heads: Heads
    units: Units
    cross: Heads | None = None
    """Attention to a context, as a decoder has it between the other two."""
    norm: str = "rms"
    """The parameters of "rms" are the weight alone, those of "layer" a dict with a bias."""
    norm_first: bool = True

    def fwd(
        self,
        x: Array,
        layer: Params,
        context: Array | None = None,
        /,
        *,
        caches: Sequence[KVCache] = (),
        recompute: bool = False,
    ) -> tuple[Array, BlockResiduals | Recomputed]:
        """
        Compute the output (..., Q, D) of the block, and the residuals for `block_bwd`.

        `caches` hold keys and values of the attention, and of that to the context if there is one.
        """
        norm = Layer(partial(norm_fwd, self.norm, eps=self.eps), norm_bwd)
        if self.norm == "rms":
            norm = Layer(partial(rms_norm_fwd, eps=self.eps), rms_norm_bwd)
        own, other = [*caches, None, None][:2]
        sublayers = {"attention": _attention(self.heads, own)}
        if self.cross is not None:
            sublayers["cross"] = _attention(self.cross, other, context)
        ffn = partial(ffn_fwd, how=self.units, decoding=bool(caches))
        sublayers["ffn"] = Layer(ffn, ffn_bwd)
        parts = [Part(name, part, norm, self.norm_first) for name, part in sublayers.items()]
        kind = EncoderBlockResiduals if self.cross is None else DecoderBlockResiduals
        return block_fwd(parts, x, layer, kind=kind, recompute=recompute)


def _attention(how: Heads, cache: KVCache | None, context: Array | None = None) -> Layer:
    return Layer(partial(attention_fwd, how=how, context=context, cache=cache), attention_bwd)


class StackGrads(NamedTuple):
    """Gradients of a stack of blocks, layers by name."""

    x: Array
    layers: Params
    context: Array | None = None
    bias: Array | None = None


@dataclass(frozen=True, eq=False)
class StackResiduals:
    """Residuals of a stack: those of each block, and the layers by name."""

    blocks: list[BlockResiduals | Recomputed] = field(repr=False)
    layers: Params = field(repr=False)


def stack(
    blocks: Sequence[Block],
    x: Array,
    layers: Params,
    context: Array | None = None,
    /,
    *,
    caches: Sequence[Sequence[KVCache]] | None = None,
) -> Array:
    """Compute the output of the last block, and keep nothing of any."""
    for i, block in enumerate(blocks):
        own = () if caches is None else caches[i]
        x, _ = block.fwd(x, layers[str(i)], context, caches=own)
    return x


def stack_fwd(
    blocks: Sequence[Block],
    x: Array,
    layers: Params,
    context: Array | None = None,
    /,
    *,
    recompute: bool = False,
) -> tuple[Array, StackResiduals]:
    """Compute the output of the last block; of each, keep the residuals, or only the input."""
    kept = []
    for i, block in enumerate(blocks):
        x, residuals = block.fwd(x, layers[str(i)], context, recompute=recompute)
        kept.append(residuals)
    return x, StackResiduals(kept, layers)


def stack_bwd(
    residuals: StackResiduals, dx: Array, keep: Keep | None = None, path: str = "layers", /
) -> StackGrads:
    """
    Gradients of `stack_fwd`; those of a context and a bias are sums over the blocks.

    For weights, whose paths begin with `path`, only the gradients that `keep` asks for are kept.
    """
    layers, context, bias = {}, None, None
    for i, block in reversed(list(enumerate(residuals.blocks))):
        grads = block_bwd(block, dx)
        dx, layers[str(i)] = grads.x, kept_of(grads.params, keep, f"{path}.{i}")
        context, bias = add(context, grads.context), add(bias, grads.bias)
    kept = {name: layers[name] for name in residuals.layers if layers[name]}
    return StackGrads(dx, kept, context, bias)
