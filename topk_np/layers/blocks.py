"""
Transformer blocks, forward and backward: parts, and what is around each of them.

    pre-norm     x + dropout(part(norm(x)))      Xiong et al. 2020, arXiv:2002.04745
    post-norm    norm(x + dropout(part(x)))      Vaswani et al. 2017, arXiv:1706.03762
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from topk_np._namespace import Array, nbytes
from topk_np._vjp import check_pair
from topk_np.layers.block_config import PROJECTIONS, BlockConfig
from topk_np.layers.dropout import dropout_bwd, dropout_fwd, fold_seed
from topk_np.layers.feed_forward import feed_forward_bwd, feed_forward_fwd
from topk_np.layers.linear import check_residuals
from topk_np.layers.multihead import (
    MultiheadResiduals,
    multihead_attention_bwd,
    multihead_attention_fwd,
)
from topk_np.layers.norms import init_norm, norm_bwd, norm_fwd
from topk_np.layers.projections import MultiheadWeights

ENCODER_PARTS = ("attention", "ffn")


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
    check_block(params, config, ENCODER_PARTS)
    options: dict[str, Any] = {
        "lengths": lengths,
        "is_causal": is_causal,
        "dropout_seed": dropout_seed,
    }
    out, residuals = _encoder_fwd(x, params, config, **options)
    if config.recompute:
        return out, Recomputed(_encoder_fwd, (x, params, config), options)
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


def _encoder_fwd(
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
    seeds = [part_seed(dropout_seed, i) for i in range(len(ENCODER_PARTS))]
    x, attention = residual_fwd(attend, x, params["attention_norm"], config, seeds[0])
    ffn_part = partial(ffn_fwd, params["ffn"], config)
    x, ffn = residual_fwd(ffn_part, x, params["ffn_norm"], config, seeds[1])
    return x, EncoderBlockResiduals(attention, ffn)


DECODER_PARTS = ("attention", "cross", "ffn")


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
    check_block(params, config, DECODER_PARTS)
    options: dict[str, Any] = {
        "lengths": lengths,
        "context_lengths": context_lengths,
        "dropout_seed": dropout_seed,
    }
    out, residuals = _decoder_fwd(x, context, params, config, **options)
    if config.recompute:
        return out, Recomputed(_decoder_fwd, (x, context, params, config), options)
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


def _decoder_fwd(
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

    seeds = [part_seed(dropout_seed, i) for i in range(len(DECODER_PARTS))]
    x, attention = residual_fwd(attend, x, params["attention_norm"], config, seeds[0])
    x, cross = residual_fwd(look_up, x, params["cross_norm"], config, seeds[1])
    ffn_part = partial(ffn_fwd, params["ffn"], config)
    x, ffn = residual_fwd(ffn_part, x, params["ffn_norm"], config, seeds[2])
    return x, DecoderBlockResiduals(attention, cross, ffn)


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


Grads = TypeVar("Grads")


@dataclass(frozen=True, eq=False)
class Recomputed:
    """What makes residuals again: a forward function and what it was called with."""

    fwd: Callable[..., tuple[Any, Any]]
    arguments: tuple[Any, ...] = field(repr=False)
    options: dict[str, Any] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return 0

    def residuals(self) -> Any:
        """What the forward function keeps."""
        _, residuals = self.fwd(*self.arguments, **self.options)
        return residuals


def recomputed(
    fwd: Callable[..., tuple[Array, Any]], bwd: Callable[[Any, Array], Grads], /
) -> tuple[Callable[..., tuple[Array, Recomputed]], Callable[[Recomputed, Array], Grads]]:
    """
    A forward and a backward function that keep the inputs alone between them.

    Where layers follow each other, memory then grows by one input a layer, whatever is inside of
    it, and time by a second forward pass. Gradients are the same bit for bit.

    Parameters
    ----------
    fwd : callable
        ``fwd(*arrays, **options) -> (out, residuals)``; what it draws, it draws from a seed.
    bwd : callable
        ``bwd(residuals, dout) -> gradients``.

    Returns
    -------
    fwd, bwd : callable
        The same functions of the same arguments.

    Raises
    ------
    TypeError
        If one of them cannot be called.

    Notes
    -----
    Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016, arXiv:1604.06174.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_ffn_bwd, topk_ffn_fwd
    >>> from topk_np.layers import recomputed
    >>> fwd, bwd = recomputed(topk_ffn_fwd, topk_ffn_bwd)
    >>> out, residuals = fwd(np.ones((3, 2)), np.eye(2), np.eye(2), k=1)
    >>> residuals.nbytes
    0
    >>> bwd(residuals, out).values
    array([[3., 0.],
           [0., 0.]])
    """
    check_pair(fwd, bwd)

    def keep_inputs(*arguments: Any, **options: Any) -> tuple[Array, Recomputed]:
        out, _ = fwd(*arguments, **options)
        return out, Recomputed(fwd, arguments, options)

    def make_again(kept: Recomputed, dout: Array) -> Grads:
        check_residuals(kept, Recomputed, "the forward function of this pair")
        return bwd(kept.residuals(), dout)

    return keep_inputs, make_again


def made_again(residuals: Any, /) -> Any:
    """Residuals, made again where only the inputs were kept."""
    return residuals.residuals() if isinstance(residuals, Recomputed) else residuals
