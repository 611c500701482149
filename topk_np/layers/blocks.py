"""
Transformer blocks, forward and backward. A block is a list of parts.

A part is a sublayer, attention or feed-forward, with a norm, dropout and a sum around it:

    pre-norm     x + dropout(sublayer(norm(x)))      Xiong et al. 2020, arXiv:2002.04745
    post-norm    norm(x + dropout(sublayer(x)))      Vaswani et al. 2017, arXiv:1706.03762

Encoder and decoder blocks are made from a `BlockConfig`, and those of `topk_np.models` in the
same way from the configuration of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from topk_np._namespace import Array, nbytes
from topk_np._vjp import check_pair, output_of
from topk_np.layers.block_config import BlockConfig, check_block
from topk_np.layers.dropout import DropoutResiduals, dropout_bwd, dropout_fwd, fold_seed
from topk_np.layers.feed_forward import feed_forward_bwd, feed_forward_fwd
from topk_np.layers.linear import check_residuals
from topk_np.layers.multihead import (
    MultiheadResiduals,
    multihead_attention_bwd,
    multihead_attention_fwd,
)
from topk_np.layers.norms import norm_bwd, norm_fwd
from topk_np.layers.projections import MultiheadWeights

Grads = TypeVar("Grads")
Params = Mapping[str, Any]
"""Nested dicts of arrays."""


class Layer(NamedTuple):
    """A norm or a sublayer: its forward and its backward function."""

    fwd: Callable[[Array, Any], tuple[Array, Any]]
    """``fwd(x, params) -> (out, residuals)``"""
    bwd: Callable[[Any, Array], tuple[Any, ...]]
    """``bwd(residuals, dout)`` gives the first gradients of `LayerGrads`, two at least."""


class LayerGrads(NamedTuple):
    """Gradients of a sublayer or a block, those of the parameters by name."""

    x: Array
    params: Any
    context: Array | None = None
    bias: Array | None = None
    """Of a bias of attention; in a block, of the first part that has one."""


@dataclass(frozen=True, eq=False)
class Part:
    """A sublayer of a block, and the norm, dropout and sum around it."""

    name: str
    """The name of the parameters in those of the block; the norm's are those of f"{name}_norm"."""
    sublayer: Layer
    norm: Layer
    norm_first: bool = True
    dropout: tuple[float, int] | None = None
    """Rate and seed."""


@dataclass(frozen=True, eq=False)
class PartResiduals:
    """Residuals of a part: those of its norm, of dropout, and of the sublayer."""

    how: Part = field(repr=False)
    norm: Any
    dropout: DropoutResiduals | None
    """None where nothing is dropped."""
    part: Any
    """Those of the sublayer."""

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond x: those of the norm and the sublayer, and one array like x."""
        return int(self.norm.nbytes + self.part.nbytes) + nbytes(self.norm.x)


@dataclass(frozen=True, eq=False)
class BlockResiduals:
    """Residuals of a block: subclasses have those of each part as fields, in order."""

    @property
    def parts(self) -> dict[str, PartResiduals]:
        """The fields by name."""
        return dict(vars(self))

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs: those of the parts, and the rows between them."""
        first, *others = self.parts.values()
        between = len(others) * nbytes(first.norm.x)
        return sum(part.nbytes for part in self.parts.values()) + between


Residuals = TypeVar("Residuals", bound=BlockResiduals)


def part_fwd(part: Part, x: Array, params: Params, /) -> tuple[Array, PartResiduals]:
    """Compute a part, with parameters of the whole block."""
    # 1 rows = norm(x)                      rows = x
    # 2 made = dropout(sublayer(rows))
    # 3 out = x + made                      out = norm(x + made)
    rows, normed, dropped = x, None, None
    if part.norm_first:
        rows, normed = part.norm.fwd(x, params[f"{part.name}_norm"])
    made, kept = part.sublayer.fwd(rows, params[part.name])
    if part.dropout is not None:
        rate, seed = part.dropout
        made, dropped = dropout_fwd(made, rate=rate, seed=seed)
    out = x + made
    if not part.norm_first:
        out, normed = part.norm.fwd(out, params[f"{part.name}_norm"])
    return out, PartResiduals(part, normed, dropped, kept)


def part_bwd(residuals: PartResiduals, dout: Array, /) -> tuple[LayerGrads, Any]:
    """Gradients of `part_fwd`, and those of the parameters of the norm."""
    # 3
    part, norm = residuals.how, None
    if not part.norm_first:
        dout, norm = part.norm.bwd(residuals.norm, dout)
    # 2
    dmade = dout if residuals.dropout is None else dropout_bwd(residuals.dropout, dout)
    dx, *others = part.sublayer.bwd(residuals.part, dmade)
    # 1
    if part.norm_first:
        dx, norm = part.norm.bwd(residuals.norm, dx)
    return LayerGrads(dout + dx, *others), norm


def block_fwd(
    parts: Sequence[Part],
    x: Array,
    params: Params,
    /,
    *,
    kind: Callable[..., Residuals],
    recompute: bool = False,
) -> tuple[Array, Residuals | Recomputed]:
    """Compute the parts of a block one after the other, and residuals of that kind."""
    out, residuals = x, {}
    for part in parts:
        out, residuals[part.name] = part_fwd(part, out, params)
    if recompute:
        return out, Recomputed(block_fwd, (parts, x, params), {"kind": kind})
    return out, kind(**residuals)


def block_bwd(
    residuals: BlockResiduals | Recomputed,
    dout: Array,
    /,
    kind: type[BlockResiduals] = BlockResiduals,
    function: str = "block_fwd",
) -> LayerGrads:
    """Gradients of `block_fwd`, from residuals that should be of a kind and from a function."""
    kept = residuals.residuals() if isinstance(residuals, Recomputed) else residuals
    check_residuals(kept, kind, function)
    parts = kept.parts
    del kept  # recomputed residuals are freed part by part
    params: dict[str, Any] = {}
    context, bias = None, None
    while parts:
        name, part = parts.popitem()  # the last one
        grads, norm = part_bwd(part, dout)
        dout, params = grads.x, {f"{name}_norm": norm, name: grads.params, **params}
        context = context if grads.context is None else grads.context
        bias = bias if grads.bias is None else grads.bias
    return LayerGrads(dout, params, context, bias)


def attention_bwd(residuals: MultiheadResiduals, dout: Array, /) -> LayerGrads:
    """Gradients of multi-head attention, those of the weights that were given by name."""
    grads = multihead_attention_bwd(residuals, dout)
    named = {name: grad for name, grad in grads.weights._asdict().items() if grad is not None}
    return LayerGrads(grads.x, named, grads.context, grads.bias)


class EncoderBlockGrads(NamedTuple):
    """Gradients of an encoder block, those of the parameters by name."""

    x: Array
    params: dict[str, Any]


@dataclass(frozen=True, eq=False)
class EncoderBlockResiduals(BlockResiduals):
    """Residuals of an encoder block: those of its two parts."""

    attention: PartResiduals
    ffn: PartResiduals


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
    Encoder block that also returns the residuals for its backward pass.

    Parameters, errors and cost are those of `encoder_block`.

    Returns
    -------
    out : array (..., N, E)
        The output of `encoder_block`.
    residuals : EncoderBlockResiduals or Recomputed
        Those of the layers, or with ``config.recompute`` the inputs alone.

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
    # 1 x = x + attention(norm(x)), or post-norm
    # 2 x = x + ffn(norm(x))
    check_block(params, config, ("attention", "ffn"))
    causal = {"is_causal": True} if is_causal else {}
    attention = _attention({**config.way, **config.attention_options, **causal}, lengths)
    parts = _parts(config, dropout_seed, attention=attention)
    return block_fwd(parts, x, params, kind=EncoderBlockResiduals, recompute=config.recompute)


@output_of(encoder_block_fwd)
def encoder_block() -> Array:
    """
    Encoder block: self-attention, then a feed-forward layer, each added to its input.

    With `is_causal` it is the block of a decoder without a context, as language models have it.

    Parameters
    ----------
    x : array (..., N, E)
        Rows of sequences, in float16, bfloat16, float32 or float64.
    params : nested dict of arrays
        "attention" with the matrices (out, in) and biases of `topk_np.MultiheadWeights` by name,
        "ffn" as `feed_forward` takes it, and "attention_norm" and "ffn_norm" with a "weight" and,
        for layer norms, a "bias". `BlockConfig.init` makes them.
    config : BlockConfig
        The kind of attention, norms, dropout, and so on.
    lengths : integer array (...), optional
        Number of rows of each sequence before its padding; by default all.
    is_causal : bool, default False
        If True, a row attends only to itself and the rows before it.
    dropout_seed : int, optional
        Seed of dropout. Without it nothing is dropped, which is right outside training. Give each
        block and step a seed of its own, made by `fold_seed`.

    Returns
    -------
    array (..., N, E)
        Rows like those of x.

    Raises
    ------
    TypeError
        If `config` is not a `BlockConfig`, or one of the layers raises it.
    ValueError
        If a name is missing in `params`, or one of the layers raises it.

    See Also
    --------
    encoder_block_fwd : also returns the residuals for the backward pass.

    Notes
    -----
    Time and memory are those of the layers. With ``config.recompute`` only x is kept between the
    passes, and the backward pass begins with another forward pass.

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
        Gradients of x, and of the parameters by name.

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
    grads = block_bwd(residuals, dout, EncoderBlockResiduals, "encoder_block_fwd")
    return EncoderBlockGrads(grads.x, grads.params)


class DecoderBlockGrads(NamedTuple):
    """Gradients of a decoder block, those of the parameters by name."""

    x: Array
    context: Array
    params: dict[str, Any]


@dataclass(frozen=True, eq=False)
class DecoderBlockResiduals(BlockResiduals):
    """Residuals of a decoder block: those of its three parts."""

    attention: PartResiduals
    cross: PartResiduals
    ffn: PartResiduals


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
    Decoder block that also returns the residuals for its backward pass.

    Parameters, errors and cost are those of `decoder_block`.

    Returns
    -------
    out : array (..., Q, E)
        The output of `decoder_block`.
    residuals : DecoderBlockResiduals or Recomputed
        Those of the layers, or with ``config.recompute`` the inputs alone.

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
    # 1 x = x + attention(norm(x)), or post-norm, as the next two
    # 2 x = x + attention(norm(x), context)
    # 3 x = x + ffn(norm(x))
    check_block(params, config, ("attention", "cross", "ffn"))
    own = {**config.way, **config.attention_options, "is_causal": True}
    cross = _attention({**config.way, **config.cross_options}, context_lengths, context)
    parts = _parts(config, dropout_seed, attention=_attention(own, lengths), cross=cross)
    return block_fwd(parts, x, params, kind=DecoderBlockResiduals, recompute=config.recompute)


@output_of(decoder_block_fwd)
def decoder_block() -> Array:
    """
    Decoder block: causal self-attention, attention to a context, and a feed-forward layer.

    Each of the three is added to its input.

    Parameters
    ----------
    x : array (..., Q, E)
        Rows of sequences, in float16, bfloat16, float32 or float64.
    context : array (..., N, E_kv)
        The output of an encoder, for example; leading axes broadcast.
    params : nested dict of arrays
        Those of an `encoder_block`, and also "cross" and "cross_norm" like "attention" and
        "attention_norm". `BlockConfig.init` makes them with `context_width`.
    config : BlockConfig
        The kind of attention, norms, dropout, and so on; the same for x and for the context.
    lengths, context_lengths : integer array (...), optional
        Number of rows of each sequence, and of its context, before the padding; by default all.
    dropout_seed : int, optional
        Seed of dropout. Without it nothing is dropped, which is right outside training. Give each
        block and step a seed of its own, made by `fold_seed`.

    Returns
    -------
    array (..., Q, E)
        Rows like those of x.

    Raises
    ------
    TypeError
        If `config` is not a `BlockConfig`, or one of the layers raises it.
    ValueError
        If a name is missing in `params`, or one of the layers raises it.

    See Also
    --------
    encoder_block : with `is_causal`, the block of a decoder without a context.
    decoder_block_fwd : also returns the residuals for the backward pass.

    Notes
    -----
    Time and memory are as for `encoder_block`. Performer and RFA estimate attention to the context
    too.

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
        Gradients of x, of the context, and of the parameters by name.

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
    grads = block_bwd(residuals, dout, DecoderBlockResiduals, "decoder_block_fwd")
    return DecoderBlockGrads(grads.x, grads.context, grads.params)


def _parts(config: BlockConfig, seed: int | None, **attention: Layer) -> list[Part]:
    """The parts of a block: one or two kinds of attention, then the feed-forward layer."""
    norm = Layer(partial(norm_fwd, config.norm), norm_bwd)
    ffn = Layer(partial(feed_forward_fwd, k=config.ffn_k, **config.ffn_options), feed_forward_bwd)
    parts = []
    for i, (name, sublayer) in enumerate({**attention, "ffn": ffn}.items()):
        dropout = None if seed is None else (config.dropout, fold_seed(seed, i))
        dropout = dropout if config.dropout > 0 else None
        parts.append(Part(name, sublayer, norm, config.norm_first, dropout))
    return parts


def _attention(options: Params, lengths: Array | None, context: Array | None = None) -> Layer:
    """Attention to the first `lengths` rows of x, or of a context."""
    if lengths is not None:
        options = {**options, "key_lengths": lengths}

    def fwd(x: Array, params: Params) -> tuple[Array, MultiheadResiduals]:
        return multihead_attention_fwd(x, MultiheadWeights(**params), context, **options)

    return Layer(fwd, attention_bwd)


@dataclass(frozen=True, eq=False)
class Recomputed:
    """A forward function and its arguments, by which residuals can be recomputed."""

    fwd: Callable[..., tuple[Any, Any]]
    arguments: tuple[Any, ...] = field(repr=False)
    options: dict[str, Any] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return 0

    def residuals(self) -> Any:
        """Run the forward function again for its residuals."""
        _, residuals = self.fwd(*self.arguments, **self.options)
        return residuals


def recomputed(
    fwd: Callable[..., tuple[Array, Any]], bwd: Callable[[Any, Array], Grads], /
) -> tuple[Callable[..., tuple[Array, Recomputed]], Callable[[Recomputed, Array], Grads]]:
    """
    Make a forward and a backward function that keep only the inputs between them.

    The backward function begins with another forward pass, which gives the same gradients bit for
    bit. A stack of layers then keeps one input a layer, whatever is inside of it.

    Parameters
    ----------
    fwd : callable
        ``fwd(*arrays, **options) -> (out, residuals)``; random numbers must come from a seed.
    bwd : callable
        ``bwd(residuals, dout) -> gradients``.

    Returns
    -------
    fwd, bwd : callable
        Functions of the same arguments.

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

    def recompute(kept: Recomputed, dout: Array) -> Grads:
        check_residuals(kept, Recomputed, "the forward function of this pair")
        return bwd(kept.residuals(), dout)

    return keep_inputs, recompute
