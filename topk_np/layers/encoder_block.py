"""A transformer block of self-attention and a feed-forward layer, forward and backward."""

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

PARTS = ("attention", "ffn")


class EncoderBlockGrads(NamedTuple):
    """Gradients of an encoder block, those of the parameters by their names."""

    x: Array
    params: dict[str, Any]


@dataclass(frozen=True, eq=False)
class EncoderBlockResiduals:
    """What `encoder_block_bwd` needs: what each of the two parts needs."""

    attention: ResidualParts
    ffn: ResidualParts

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        between = nbytes(self.attention.norm.x)
        return self.attention.nbytes + between + self.ffn.nbytes


def encoder_block(
    x: Array,
    params: Params,
    config: BlockConfig,
    /,
    *,
    lengths: Array | None = None,
    is_causal: bool = False,
    dropout_seed: int | None = None,
) -> Array:
    """
    A block of a transformer: self-attention, then a feed-forward layer, each added to its input.

    With `is_causal` it is also the block of a decoder without a context, as language models have.

    Parameters
    ----------
    x : array (..., N, E)
        Rows of sequences: float16, bfloat16, float32 or float64.
    params : nested dict of arrays
        "attention" with the matrices (out, in) and biases of `topk_np.MultiheadWeights` by their
        names, "ffn" as `feed_forward` takes it, "attention_norm" and "ffn_norm" with a "weight",
        and a layer norm's "bias": such as `BlockConfig.init` gives.
    config : BlockConfig
        How the block computes.
    lengths : integer array (...), optional
        Rows of each sequence that are no padding; by default all.
    is_causal : bool, default False
        Whether a row attends only to itself and those before it.
    dropout_seed : int, optional
        What is dropped depends on it; nothing is without it, as when a model is used. Give another
        one to each block and step, as `fold_seed` makes them.

    Returns
    -------
    array (..., N, E)
        Rows again.

    Raises
    ------
    TypeError
        If `config` is not a `BlockConfig`, or as the layers do.
    ValueError
        If a name is missing in `params`, or as the layers do.

    See Also
    --------
    encoder_block_fwd : also returns what the backward pass needs.

    Notes
    -----
    Time and memory are those of the layers; with ``config.recompute`` the backward pass begins with
    a forward pass, and x is all that is kept in between.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import BlockConfig, encoder_block
    >>> rng = np.random.default_rng(0)
    >>> config = BlockConfig(heads=2, attention="topk", k=3)
    >>> params = config.init(rng, width=8, hidden=16)
    >>> encoder_block(rng.random((10, 8), np.float32), params, config, is_causal=True).shape
    (10, 8)
    """
    return encoder_block_fwd(
        x, params, config, lengths=lengths, is_causal=is_causal, dropout_seed=dropout_seed
    )[0]


def encoder_block_fwd(
    x: Array,
    params: Params,
    config: BlockConfig,
    /,
    *,
    lengths: Array | None = None,
    is_causal: bool = False,
    dropout_seed: int | None = None,
) -> tuple[Array, EncoderBlockResiduals | Recomputed]:
    """
    `encoder_block`, and what its backward pass needs.

    Parameters, errors and cost are those of `encoder_block`.

    Returns
    -------
    out : array (..., N, E)
        What `encoder_block` returns.
    residuals : EncoderBlockResiduals or Recomputed
        Those of the layers; with ``config.recompute`` the inputs alone.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import BlockConfig, encoder_block_fwd
    >>> config = BlockConfig(heads=2, recompute=True)
    >>> params = config.init(np.random.default_rng(0), width=8, hidden=16)
    >>> out, residuals = encoder_block_fwd(np.ones((10, 8), np.float32), params, config)
    >>> residuals.nbytes
    0
    """
    check_block(params, config, PARTS)
    options: dict[str, Any] = {
        "lengths": lengths,
        "is_causal": is_causal,
        "dropout_seed": dropout_seed,
    }
    out, residuals = _fwd(x, params, config, **options)
    if config.recompute:
        return out, Recomputed(_fwd, (x, params, config), options)
    return out, residuals


def encoder_block_bwd(
    residuals: EncoderBlockResiduals | Recomputed, dout: Array, /
) -> EncoderBlockGrads:
    """
    Gradients of `encoder_block`.

    Parameters
    ----------
    residuals : EncoderBlockResiduals or Recomputed
        From `encoder_block_fwd`.
    dout : array (..., N, E)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    EncoderBlockGrads
        Gradients of x, and of the parameters by their names.

    Raises
    ------
    TypeError
        If `residuals` is not from `encoder_block_fwd`, or `dout` has another library, device or
        dtype than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import BlockConfig, encoder_block_bwd, encoder_block_fwd
    >>> config = BlockConfig(heads=2, attention="topk", k=3, dropout=0.1)
    >>> params = config.init(np.random.default_rng(0), width=8, hidden=16)
    >>> x = np.ones((10, 8), np.float32)
    >>> out, residuals = encoder_block_fwd(x, params, config, dropout_seed=1)
    >>> dx, dparams = encoder_block_bwd(residuals, np.ones_like(out))
    >>> dx.shape, dparams["ffn"]["keys"].shape
    ((10, 8), (16, 8))
    """
    kept = made_again(residuals)
    check_residuals(kept, EncoderBlockResiduals, "encoder_block_fwd")
    attention_kept, ffn_kept = kept.attention, kept.ffn
    del kept  # what was made again is let go of part by part
    # 2
    ffn = residual_bwd(feed_forward_bwd, ffn_kept, dout)
    del ffn_kept
    # 1
    attention = residual_bwd(attention_bwd, attention_kept, ffn.x)
    params = {
        "attention_norm": attention.norm,
        "attention": attention.part,
        "ffn_norm": ffn.norm,
        "ffn": ffn.part,
    }
    return EncoderBlockGrads(attention.x, params)


def _fwd(
    x: Array,
    params: Params,
    config: BlockConfig,
    /,
    *,
    lengths: Array | None,
    is_causal: bool,
    dropout_seed: int | None,
) -> tuple[Array, EncoderBlockResiduals]:
    # 1 x = x + attention(norm(x)), or post-norm
    # 2 x = x + ffn(norm(x))
    attend = partial(
        attention_fwd, params["attention"], config, is_causal=is_causal, lengths=lengths
    )
    seeds = [part_seed(dropout_seed, i) for i in range(len(PARTS))]
    x, attention = residual_fwd(attend, x, params["attention_norm"], config, seeds[0])
    ffn_part = partial(ffn_fwd, params["ffn"], config)
    x, ffn = residual_fwd(ffn_part, x, params["ffn_norm"], config, seeds[1])
    return x, EncoderBlockResiduals(attention, ffn)
