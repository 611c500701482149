"""
What is around each part of a block: a norm, dropout, and a sum with what came in.

    pre-norm     x + dropout(part(norm(x)))      Xiong et al. 2020, arXiv:2002.04745
    post-norm    norm(x + dropout(part(x)))      Vaswani et al. 2017, arXiv:1706.03762
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from topk_np._namespace import Array, nbytes
from topk_np.layers.block_config import BlockConfig
from topk_np.layers.dropout import dropout_bwd, dropout_fwd
from topk_np.layers.named_norm import norm_bwd, norm_fwd

Params = Mapping[str, Any]
"""Nested dicts of arrays."""


class ResidualParts(NamedTuple):
    """What `residual_bwd` needs: what each of the three needs."""

    norm_first: bool
    norm: Any
    dropout: Any
    """None where nothing is dropped."""
    part: Any

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond x: those of the norm and the part, and one array like x."""
        return int(self.norm.nbytes + self.part.nbytes) + nbytes(self.norm.x)


class ResidualGrads(NamedTuple):
    """Gradients of x, of the parameters of norm and part by their names, and of a context."""

    x: Array
    norm: dict[str, Array]
    part: dict[str, Array]
    context: Array | None = None


def residual_fwd(
    part: Callable[[Array], tuple[Array, Any]],
    x: Array,
    norm: Params,
    config: BlockConfig,
    seed: int | None,
) -> tuple[Array, ResidualParts]:
    """A part with all that is around it; with a seed its output is dropped in part."""
    # 1 rows = norm(x)            rows = x
    # 2 made = dropout(part(rows))
    # 3 out = x + made            out = norm(x + made)
    rows, normed, dropped = x, None, None
    if config.norm_first:
        rows, normed = norm_fwd(config.norm, x, norm)
    made, kept = part(rows)
    if seed is not None and config.dropout > 0:
        made, dropped = dropout_fwd(made, rate=config.dropout, seed=seed)
    out = x + made
    if not config.norm_first:
        out, normed = norm_fwd(config.norm, out, norm)
    return out, ResidualParts(config.norm_first, normed, dropped, kept)


def residual_bwd(
    part_bwd: Callable[[Any, Array], tuple[Any, ...]], residuals: ResidualParts, dout: Array
) -> ResidualGrads:
    """Gradients of `residual_fwd`; `part_bwd` gives those of x, of parameters, of a context."""
    # 3
    norm: dict[str, Array] = {}
    if not residuals.norm_first:
        dout, norm = norm_bwd(residuals.norm, dout)
    # 2
    dmade = dout if residuals.dropout is None else dropout_bwd(residuals.dropout, dout)
    dx, *others = part_bwd(residuals.part, dmade)
    # 1
    if residuals.norm_first:
        dx, norm = norm_bwd(residuals.norm, dx)
    return ResidualGrads(dout + dx, norm, *others)
