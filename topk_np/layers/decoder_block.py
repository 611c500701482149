"""A transformer block that also attends to a context, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from topk_np._namespace import Array, nbytes
from topk_np.layers.block_config import BlockConfig
from topk_np.layers.block_parts import (
    attention_bwd,
    attention_fwd,
    check_block,
    ffn_fwd,
    part_seed,
)
from topk_np.layers.feed_forward import feed_forward_bwd
from topk_np.layers.recompute import Recomputed, made_again
from topk_np.layers.residual import Params, ResidualParts, residual_bwd, residual_fwd
from topk_np.layers.rows import check_residuals

PARTS = ("attention", "cross", "ffn")


class DecoderBlockGrads(NamedTuple):
    """Gradients of a decoder block, those of the parameters by their names."""

    x: Array
    context: Array
    params: dict[str, Any]


@dataclass(frozen=True, eq=False)
class DecoderBlockResiduals:
    """What `decoder_block_bwd` needs: what each of the three parts needs."""

    attention: ResidualParts
    cross: ResidualParts
    ffn: ResidualParts

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        between = 2 * nbytes(self.attention.norm.x)
        return self.attention.nbytes + self.cross.nbytes + self.ffn.nbytes + between


def decoder_block(
    x: Array,
    context: Array,
    params: Params,
    config: BlockConfig,
    /,
    *,
    lengths: Array | None = None,
    context_lengths: Array | None = None,
    dropout_seed: int | None = None,
) -> Array:
    """
    A block of a decoder: causal self-attention, attention to a context, and a feed-forward layer.

    Each of the three is added to its input.

    Parameters
    ----------
    x : array (..., Q, E)
        Rows of sequences: float16, bfloat16, float32 or float64.
    context : array (..., N, E_kv)
        What an encoder made, say; leading axes broadcast.
    params : nested dict of arrays
        Those of an encoder block, see `encoder_block`, and "cross" and "cross_norm" like
        "attention" and "attention_norm": such as `BlockConfig.init` gives with `context_width`.
    config : BlockConfig
        How the block computes; to the context it attends as to x.
    lengths, context_lengths : integer array (...), optional
        Rows of each sequence, and of its context, that are no padding; by default all.
    dropout_seed : int, optional
        What is dropped depends on it; nothing is without it, as when a model is used. Give another
        one to each block and step, as `fold_seed` makes them.

    Returns
    -------
    array (..., Q, E)
        Rows again.

    Raises
    ------
    TypeError
        If `config` is not a `BlockConfig`, or as the layers do.
    ValueError
        If a name is missing in `params`, or as the layers do.

    See Also
    --------
    encoder_block : with `is_causal` a decoder's block without a context.

    Notes
    -----
    As of `encoder_block`. With Performer or RFA the context too is attended to by the estimate.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import BlockConfig, decoder_block
    >>> rng = np.random.default_rng(0)
    >>> config = BlockConfig(heads=2, attention="topk", k=3, norm_first=False)
    >>> params = config.init(rng, width=8, hidden=16, context_width=6)
    >>> x, context = rng.random((2, 10, 8), np.float32), rng.random((2, 7, 6), np.float32)
    >>> decoder_block(x, context, params, config, context_lengths=np.array([7, 5])).shape
    (2, 10, 8)
    """
    return decoder_block_fwd(
        x,
        context,
        params,
        config,
        lengths=lengths,
        context_lengths=context_lengths,
        dropout_seed=dropout_seed,
    )[0]


def decoder_block_fwd(
    x: Array,
    context: Array,
    params: Params,
    config: BlockConfig,
    /,
    *,
    lengths: Array | None = None,
    context_lengths: Array | None = None,
    dropout_seed: int | None = None,
) -> tuple[Array, DecoderBlockResiduals | Recomputed]:
    """
    `decoder_block`, and what its backward pass needs.

    Parameters, errors and cost are those of `decoder_block`.

    Returns
    -------
    out : array (..., Q, E)
        What `decoder_block` returns.
    residuals : DecoderBlockResiduals or Recomputed
        Those of the layers; with ``config.recompute`` the inputs alone.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import BlockConfig, decoder_block_fwd
    >>> config = BlockConfig(heads=2, recompute=True)
    >>> params = config.init(np.random.default_rng(0), width=8, hidden=16, context_width=8)
    >>> x = np.ones((10, 8), np.float32)
    >>> out, residuals = decoder_block_fwd(x, x[:3], params, config)
    >>> residuals.nbytes
    0
    """
    check_block(params, config, PARTS)
    options: dict[str, Any] = {
        "lengths": lengths,
        "context_lengths": context_lengths,
        "dropout_seed": dropout_seed,
    }
    out, residuals = _fwd(x, context, params, config, **options)
    if config.recompute:
        return out, Recomputed(_fwd, (x, context, params, config), options)
    return out, residuals


def decoder_block_bwd(
    residuals: DecoderBlockResiduals | Recomputed, dout: Array, /
) -> DecoderBlockGrads:
    """
    Gradients of `decoder_block`.

    Parameters
    ----------
    residuals : DecoderBlockResiduals or Recomputed
        From `decoder_block_fwd`.
    dout : array (..., Q, E)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    DecoderBlockGrads
        Gradients of x, of the context, and of the parameters by their names.

    Raises
    ------
    TypeError
        If `residuals` is not from `decoder_block_fwd`, or `dout` has another library, device or
        dtype than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import BlockConfig, decoder_block_bwd, decoder_block_fwd
    >>> config = BlockConfig(heads=2, attention="topk", k=3)
    >>> params = config.init(np.random.default_rng(0), width=8, hidden=16, context_width=8)
    >>> x = np.ones((10, 8), np.float32)
    >>> out, residuals = decoder_block_fwd(x, x[:3], params, config)
    >>> grads = decoder_block_bwd(residuals, np.ones_like(out))
    >>> grads.context.shape, list(grads.params)[2:4]
    ((3, 8), ['cross_norm', 'cross'])
    """
    kept = made_again(residuals)
    check_residuals(kept, DecoderBlockResiduals, "decoder_block_fwd")
    attention_kept, cross_kept, ffn_kept = kept.attention, kept.cross, kept.ffn
    del kept  # what was made again is let go of part by part
    # 3
    ffn = residual_bwd(feed_forward_bwd, ffn_kept, dout)
    del ffn_kept
    # 2
    cross = residual_bwd(attention_bwd, cross_kept, ffn.x)
    del cross_kept
    # 1
    attention = residual_bwd(attention_bwd, attention_kept, cross.x)
    params = {
        "attention_norm": attention.norm,
        "attention": attention.part,
        "cross_norm": cross.norm,
        "cross": cross.part,
        "ffn_norm": ffn.norm,
        "ffn": ffn.part,
    }
    return DecoderBlockGrads(attention.x, cross.context, params)


def _fwd(
    x: Array,
    context: Array,
    params: Params,
    config: BlockConfig,
    /,
    *,
    lengths: Array | None,
    context_lengths: Array | None,
    dropout_seed: int | None,
) -> tuple[Array, DecoderBlockResiduals]:
    # 1 x = x + attention(norm(x)), or post-norm, as the next two
    # 2 x = x + attention(norm(x), context)
    # 3 x = x + ffn(norm(x))
    attend = partial(attention_fwd, params["attention"], config, is_causal=True, lengths=lengths)

    def look_up(rows: Array) -> Any:
        return attention_fwd(params["cross"], config, rows, context, lengths=context_lengths)

    seeds = [part_seed(dropout_seed, i) for i in range(len(PARTS))]
    x, attention = residual_fwd(attend, x, params["attention_norm"], config, seeds[0])
    x, cross = residual_fwd(look_up, x, params["cross_norm"], config, seeds[1])
    ffn_part = partial(ffn_fwd, params["ffn"], config)
    x, ffn = residual_fwd(ffn_part, x, params["ffn_norm"], config, seeds[2])
    return x, DecoderBlockResiduals(attention, cross, ffn)
