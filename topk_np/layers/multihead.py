"""Multi-head attention with its projections, forward and backward, in any of five ways."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from topk_np._namespace import Array, array_namespace, cast, nbytes
from topk_np.inputs import check_dout
from topk_np.layers.attention_kinds import (
    AttentionResiduals,
    attend_bwd,
    bias_shape,
    choose_kind,
    group_options,
)
from topk_np.layers.linear import affine, affine_bwd
from topk_np.layers.projections import (
    MultiheadGrads,
    MultiheadWeights,
    Projections,
    check_multihead,
    merge_heads,
    split_heads,
)
from topk_np.layers.rope import Rope


@dataclass(frozen=True, eq=False)
class MultiheadResiduals:
    """What `multihead_attention_bwd` needs: the inputs, the projections, and what was attended."""

    inputs: Projections = field(repr=False)
    attention: AttentionResiduals
    """Those of the attention, whose query, key and value are the projections."""
    attended: Array = field(repr=False)
    """(..., Q, H V) what goes into the last projection."""
    bias_shape: tuple[int, ...] = ()
    """The shape in which the bias was given."""

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        inputs = self.inputs
        given = self.attention.problem.inputs
        kept = [given["query"], given["key"], given["value"], self.attended]
        for rotation in (inputs.query_rotation, inputs.key_rotation):
            kept += [] if rotation is None else [rotation.cosine, rotation.sine]
        return self.attention.nbytes + sum(nbytes(array) for array in kept)


def multihead_attention(
    x: Array,
    weights: MultiheadWeights,
    context: Array | None = None,
    /,
    *,
    heads: int,
    attention: str | None = None,
    k: int | None = None,
    rope: Rope | None = None,
    query_positions: int | Array | None = None,
    key_positions: int | Array | None = None,
    **options: Any,
) -> Array:
    """
    Multi-head attention: project, attend in every head, put the heads together, project back.

    Self-attention over `x`, or cross-attention from `x` to `context`. Grouped and multi-query heads
    follow from the shapes: the key and value heads may be fewer than the query heads.

    Parameters
    ----------
    x : array (..., Q, E)
        float16, bfloat16, float32 or float64; half precision is computed in float32.
    weights : MultiheadWeights
        Projections (out, in) and optional biases, of the library, device and dtype of `x`.
    context : array (..., N, E_kv), optional
        What keys and values are projected from, by default `x`; leading axes broadcast.
    heads : int
        Query heads H. The number of key heads follows from `weights` and must divide it.
    attention : {"dense", "chunked", "topk", "performer", "rfa"}, optional
        How every head attends: to all keys, the same in chunks of queries (1,024 of them, as in the
        paper, unless `chunk_size` or `memory_budget` is given), to its k best keys, or by the
        estimates of `topk_np.baselines`. By default "topk" with `k` or `p`, else "dense".
    k : int, optional
        Keys to keep for each query of each head, in top-k attention.
    rope : Rope, optional
        Turn queries and keys by their positions; not by default.
    query_positions : int or int array (..., Q), optional
        Positions for `rope`, or the first one; by default `query_offset`, or 0 without.
    key_positions : int or int array (..., N), optional
        Those of the keys; by default `query_positions` in self-attention, else 0.
    **options
        Those of the attention function, but for `return_lse`: `topk_attention`, where `p` with
        `max_k` may stand instead of `k`, `dense_attention`, or one of `topk_np.baselines`. Arrays
        for `mask` and `bias` broadcast to (..., H, Q, N), the slopes of an `ALiBi` and the columns
        of a `T5Bias` are those of the H heads; `query_offset`, `query_lengths` and `key_lengths`
        are over the leading axes of `x`, without the heads.

    Returns
    -------
    array (..., Q, E_out)
        In the dtype, library and device of the inputs.

    Raises
    ------
    TypeError
        If the inputs are not floating arrays of one library, device and dtype, `weights` is not a
        `MultiheadWeights`, `rope` is not a `Rope`, or an option is unknown.
    ValueError
        If shapes do not fit, `attention` is unknown, `k` is given where no keys are ranked, the
        key heads do not divide the query heads, or positions are given without `rope`.

    See Also
    --------
    multihead_attention_fwd : also returns what the backward pass needs.

    Notes
    -----
    Time and memory are those of attention and of the projections. Memory is linear in length
    with `k`; dense attention needs `chunk_size` or `memory_budget` for that. Vaswani et al. 2017,
    section 3.2.2, arXiv:1706.03762; grouped heads: Ainslie et al. 2023, arXiv:2305.13245.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import MultiheadWeights, Rope, multihead_attention
    >>> rng = np.random.default_rng(0)
    >>> shapes = (8, 6), (4, 6), (4, 6), (6, 8)  # 4 query heads, 2 key heads of width 2
    >>> weights = MultiheadWeights(*(rng.standard_normal(shape) for shape in shapes))
    >>> x = rng.standard_normal((10, 6))
    >>> multihead_attention(x, weights, heads=4, k=3, is_causal=True, rope=Rope()).shape
    (10, 6)
    """
    inputs = check_multihead(
        x, weights, context, heads, rope, query_positions, key_positions, options
    )
    query, key, value = inputs.project()
    way, own = choose_kind(attention, k, group_options(options, inputs.heads, inputs.groups))
    out = way.attend(query, key, value, **own)
    return affine(merge_heads(out, grouped=True), weights.out, weights.out_bias)


def multihead_attention_fwd(
    x: Array,
    weights: MultiheadWeights,
    context: Array | None = None,
    /,
    *,
    heads: int,
    attention: str | None = None,
    k: int | None = None,
    rope: Rope | None = None,
    query_positions: int | Array | None = None,
    key_positions: int | Array | None = None,
    **options: Any,
) -> tuple[Array, MultiheadResiduals]:
    """
    `multihead_attention`, and what its backward pass needs.

    Parameters, errors and cost are those of `multihead_attention`.

    Returns
    -------
    out : array (..., Q, E_out)
        What `multihead_attention` returns.
    residuals : MultiheadResiduals
        The projections, what was attended, and the residuals of the attention.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import MultiheadWeights, multihead_attention_fwd
    >>> weights = MultiheadWeights(*[np.eye(4)] * 4)
    >>> out, residuals = multihead_attention_fwd(np.eye(4), weights, heads=2, k=1)
    >>> residuals.attention.indices.shape  # groups, heads of a group, queries, kept keys
    (2, 1, 4, 1)
    """
    # 1 query, key, value = projections of x and context, split into heads, turned
    # 2 attended = attention(query, key, value)
    # 3 out = projection of attended, merged
    inputs = check_multihead(
        x, weights, context, heads, rope, query_positions, key_positions, options
    )
    query, key, value = inputs.project()
    way, own = choose_kind(attention, k, group_options(options, inputs.heads, inputs.groups))
    attended, residuals = way.fwd(query, key, value, **own)
    attended = merge_heads(attended, grouped=True)
    out = affine(attended, weights.out, weights.out_bias)
    return out, MultiheadResiduals(inputs, residuals, attended, bias_shape(options))


def multihead_attention_bwd(residuals: MultiheadResiduals, dout: Array, /) -> MultiheadGrads:
    """
    Gradients of `multihead_attention`.

    Parameters
    ----------
    residuals : MultiheadResiduals
        From `multihead_attention_fwd`.
    dout : array (..., Q, E_out)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    MultiheadGrads
        Gradients of x, of the weights as a `MultiheadWeights`, of the context, and of the bias as
        in `topk_attention_bwd`.

    Raises
    ------
    TypeError
        If `residuals` is not from `multihead_attention_fwd`, or `dout` has another library, device
        or dtype than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Notes
    -----
    Time and memory are those of the backward pass of attention and of the projections.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import MultiheadWeights, multihead_attention_bwd, multihead_attention_fwd
    >>> weights = MultiheadWeights(*[np.eye(4)] * 4)
    >>> out, residuals = multihead_attention_fwd(np.eye(4), weights, heads=2, k=1)
    >>> multihead_attention_bwd(residuals, np.ones_like(out)).weights.out[0]
    array([3., 1., 1., 1.])
    """
    if not isinstance(residuals, MultiheadResiduals):
        raise TypeError(
            "residuals must come from multihead_attention_fwd, got " + type(residuals).__name__
        )
    inputs, attended, attention = residuals.inputs, residuals.attended, residuals.attention
    w = inputs.weights
    dout = check_dout(inputs.x, (*attended.shape[:-1], w.out.shape[0]), dout)
    # 3
    dattended, dweight, dbias = affine_bwd(attended, w.out, w.out_bias, dout)
    dattended = cast(array_namespace(dout), dattended, dout.dtype)
    dattended = split_heads(dattended, inputs.heads, groups=inputs.groups)
    # 2
    grads = attend_bwd(attention, dattended)
    # 1
    made = inputs.project_bwd(grads.query, grads.key, grads.value)
    bias = getattr(grads, "bias", None)  # a random feature has none
    if bias is not None:
        bias = array_namespace(bias).reshape(bias, residuals.bias_shape)
    return made._replace(weights=made.weights._replace(out=dweight, out_bias=dbias), bias=bias)
