"""Post-norm blocks, those of BERT, and layer norms with their weights by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from topk_np import multihead_attention_bwd
from topk_np._namespace import Array
from topk_np.layers import feed_forward_bwd, layer_norm_bwd, layer_norm_fwd
from topk_np.models.blocks import BlockGrads, Sublayer, weight_grads
from topk_np.models.model import Params
from topk_np.models.sublayers import Heads, Units, attention_fwd, ffn_fwd


@dataclass(frozen=True)
class PostNormBlock:
    """How a block computes: all but its weights and its inputs."""

    eps: float
    heads: Heads
    units: Units

    def fwd(
        self, x: Array, layer: Params, context: None = None, /, *, caches: tuple[()] = ()
    ) -> tuple[Array, dict[str, Sublayer]]:
        """The block's output (..., Q, D), and what `bwd` needs."""
        # 1 x = norm(x + attention(x))
        # 2 x = norm(x + ffn(x))
        residuals = {}
        out, part = attention_fwd(x, layer["attention"], self.heads)
        x, norm = norm_fwd(x + out, layer["attention_norm"], self.eps)
        residuals["attention"] = Sublayer(norm, part)
        out, part = ffn_fwd(x, layer["ffn"], self.units)
        x, norm = norm_fwd(x + out, layer["ffn_norm"], self.eps)
        residuals["ffn"] = Sublayer(norm, part)
        return x, residuals

    def bwd(self, residuals: dict[str, Sublayer], dx: Array, /) -> BlockGrads:
        """Gradients of `fwd`."""
        # 2
        norm, part = residuals["ffn"]
        dx, ffn_norm = norm_bwd(norm, dx)
        dinner, ffn = feed_forward_bwd(part, dx)
        dx = dx + dinner
        # 1
        norm, part = residuals["attention"]
        dx, attention_norm = norm_bwd(norm, dx)
        grads = multihead_attention_bwd(part, dx)
        layer = {
            "attention": weight_grads(grads),
            "attention_norm": attention_norm,
            "ffn": ffn,
            "ffn_norm": ffn_norm,
        }
        return BlockGrads(dx + grads.x, layer)


def norm_fwd(x: Array, params: Params, eps: float) -> tuple[Array, Any]:
    """Layer norm, and what `norm_bwd` needs."""
    return layer_norm_fwd(x, params["weight"], params["bias"], eps=eps)


def norm_bwd(residuals: Any, dx: Array) -> tuple[Array, Params]:
    """Gradients of `norm_fwd`: of x, and of the weights by name."""
    grads = layer_norm_bwd(residuals, dx)
    return grads.x, {"weight": grads.weight, "bias": grads.bias}
