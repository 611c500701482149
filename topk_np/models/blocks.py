"""Pre-norm blocks, those of Llama and T5, and stacks of blocks of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from topk_np import KVCache, MultiheadGrads, multihead_attention_bwd
from topk_np._namespace import Array
from topk_np.layers import rms_norm_bwd, rms_norm_fwd
from topk_np.models.model import Keep, Params, kept_of
from topk_np.models.sublayers import Heads, Units, attention_fwd, ffn_fwd
from topk_np.models.token_loss import add
from topk_np.models.variants import ffn_bwd


class BlockGrads(NamedTuple):
    """Gradients of a block; a context and a bias have theirs where there are such."""

    x: Array
    layer: Params
    context: Array | None = None
    bias: Array | None = None


class Sublayer(NamedTuple):
    """What goes back through a norm and the part behind it."""

    norm: Any
    part: Any


@dataclass(frozen=True)
class Block:
    """How a pre-norm block computes: all but its weights and its inputs."""

    eps: float
    heads: Heads
    units: Units
    cross: Heads | None = None
    """Attention to a context, as a decoder has it between the other two."""

    def fwd(
        self,
        x: Array,
        layer: Params,
        context: Array | None = None,
        /,
        *,
        caches: Sequence[KVCache] = (),
    ) -> tuple[Array, dict[str, Sublayer]]:
        """
        The block's output (..., Q, D), and what `bwd` needs.

        `caches` hold keys and values of the attention, and of that to the context if there is one.
        """
        # 1 x = x + attention(norm(x))
        # 2 x = x + attention(norm(x), context)
        # 3 x = x + ffn(norm(x))
        own, *others = [*caches, None]
        residuals = {}
        normed, norm = rms_norm_fwd(x, layer["attention_norm"], eps=self.eps)
        out, part = attention_fwd(normed, layer["attention"], self.heads, cache=own)
        residuals["attention"] = Sublayer(norm, part)
        x = x + out
        if self.cross is not None:
            normed, norm = rms_norm_fwd(x, layer["cross_norm"], eps=self.eps)
            out, part = attention_fwd(
                normed, layer["cross"], self.cross, context, cache=others[0] if others else None
            )
            residuals["cross"] = Sublayer(norm, part)
            x = x + out
        normed, norm = rms_norm_fwd(x, layer["ffn_norm"], eps=self.eps)
        out, part = ffn_fwd(normed, layer["ffn"], self.units, decoding=bool(caches))
        residuals["ffn"] = Sublayer(norm, part)
        return x + out, residuals

    def bwd(self, residuals: dict[str, Sublayer], dx: Array, /) -> BlockGrads:
        """Gradients of `fwd`."""
        layer: Params = {}
        # 3
        norm, part = residuals["ffn"]
        dnormed, layer["ffn"] = ffn_bwd(part, dx)
        dx = _norm_bwd(norm, dnormed, dx, "ffn_norm", layer)
        # 2
        dcontext = None
        if "cross" in residuals:
            norm, part = residuals["cross"]
            grads = multihead_attention_bwd(part, dx)
            layer["cross"], dcontext = weight_grads(grads), grads.context
            dx = _norm_bwd(norm, grads.x, dx, "cross_norm", layer)
        # 1
        norm, part = residuals["attention"]
        grads = multihead_attention_bwd(part, dx)
        layer["attention"] = weight_grads(grads)
        dx = _norm_bwd(norm, grads.x, dx, "attention_norm", layer)
        return BlockGrads(dx, layer, dcontext, grads.bias)


def _norm_bwd(residuals: Any, dnormed: Array, dx: Array, name: str, layer: Params) -> Array:
    """The gradient of x, which goes on both as it is and through a norm."""
    grads = rms_norm_bwd(residuals, dnormed)
    layer[name] = grads.weight
    return dx + grads.x


def weight_grads(grads: MultiheadGrads, /) -> Params:
    """The gradients of the weights that there are, by name."""
    return {name: d for name, d in grads.weights._asdict().items() if d is not None}


class StackGrads(NamedTuple):
    """Gradients of a stack of blocks, layers by name."""

    x: Array
    layers: Params
    context: Array | None = None
    bias: Array | None = None


@dataclass(frozen=True, eq=False)
class StackResiduals:
    """What `stack_bwd` needs: residuals of each block, or what makes them again."""

    blocks: Sequence[Any]
    layers: Params = field(repr=False)
    context: Array | None = field(repr=False)
    kept: list[Any] = field(repr=False)
    recompute: bool


def stack(
    blocks: Sequence[Any],
    x: Array,
    layers: Params,
    context: Array | None = None,
    /,
    *,
    caches: Sequence[Sequence[KVCache]] | None = None,
) -> Array:
    """The output of the last of some blocks, and nothing kept of them."""
    for i, block in enumerate(blocks):
        own = () if caches is None else caches[i]
        x, _ = block.fwd(x, layers[str(i)], context, caches=own)
    return x


def stack_fwd(
    blocks: Sequence[Any],
    x: Array,
    layers: Params,
    context: Array | None = None,
    /,
    *,
    recompute: bool = False,
) -> tuple[Array, StackResiduals]:
    """The output of the last block, and what `stack_bwd` needs: inputs only to `recompute`."""
    kept = []
    for i, block in enumerate(blocks):
        out, residuals = block.fwd(x, layers[str(i)], context)
        kept.append(x if recompute else residuals)
        x = out
    return x, StackResiduals(blocks, layers, context, kept, recompute)


def stack_bwd(
    residuals: StackResiduals, dx: Array, keep: Keep | None = None, path: str = "layers", /
) -> StackGrads:
    """
    Gradients of `stack_fwd`: a context's and a bias's are the sums of what its blocks give.

    Of each block's weights, whose paths begin with `path`, only what `keep` says is kept.
    """
    layers, context, bias = {}, None, None
    for i in reversed(range(len(residuals.blocks))):
        block, own = residuals.blocks[i], residuals.kept[i]
        if residuals.recompute:
            _, own = block.fwd(own, residuals.layers[str(i)], residuals.context)
        grads = block.bwd(own, dx)
        dx, layers[str(i)] = grads.x, kept_of(grads.layer, keep, f"{path}.{i}")
        context, bias = add(context, grads.context), add(bias, grads.bias)
    kept = {name: layers[name] for name in residuals.layers if layers[name]}
    return StackGrads(dx, kept, context, bias)
