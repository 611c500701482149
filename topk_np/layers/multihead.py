"""Multi-head attention with its projections, forward and backward, of any kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from topk_np._namespace import Array, array_namespace, cast, nbytes
from topk_np._vjp import output_of, residuals_on_demand
from topk_np.layers.attention_kinds import (
    AttentionResiduals,
    attend_bwd,
    bias_shape,
    choose_kind,
    group_options,
)
from topk_np.layers.linear import affine, affine_bwd, check_residuals
from topk_np.layers.projections import (
    MultiheadGrads,
    MultiheadWeights,
    Projections,
    check_multihead,
    merge_heads,
    split_heads,
)
from topk_np.layers.rope import Rope
from topk_np.options.check import check_dout


@dataclass(frozen=True, eq=False)
class MultiheadResiduals:
    """Residuals of multi-head attention: inputs, projections, and those of the attention."""

    inputs: Projections = field(repr=False)
    attention: AttentionResiduals
    """Those of the attention, whose query, key and value are the projections."""
    attended: Array = field(repr=False)
    """(..., Q, H V) the input of the output projection."""
    bias_shape: tuple[int, ...] = ()
    """The shape in which the bias was given."""

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        inputs = self.inputs
        given = self.attention.call.inputs
        kept = [given["query"], given["key"], given["value"], self.attended]
        for rotation in (inputs.query_rotation, inputs.key_rotation):
            kept += [] if rotation is None else [rotation.cosine, rotation.sine]
        return self.attention.nbytes + sum(nbytes(array) for array in kept)


@residuals_on_demand
def multihead_attention_fwd(
    keep: bool,
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
) -> tuple[Array, MultiheadResiduals | None]:
    """
    Multi-head attention that also returns the residuals for its backward pass.

    Parameters, errors and cost are those of `multihead_attention`.

    Returns
    -------
    out : array (..., Q, E_out)
        The output of `multihead_attention`.
    residuals : MultiheadResiduals
        The projections, the input of the last of them, and the residuals of the attention.

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
    kind, own = choose_kind(attention, k, group_options(options, inputs.heads, inputs.groups))

    def attend(*arrays: Array) -> tuple[Array, Any]:
        return kind.fwd(*arrays, **own) if keep else (kind.attend(*arrays, **own), None)

    return attend_fwd(inputs, inputs.project(), attend, bias_shape(options))


@output_of(multihead_attention_fwd)
def multihead_attention() -> Array:
    """
    Multi-head attention: project, attend in every head, merge the heads, project back.

    It is self-attention over `x`, or cross-attention from `x` to `context`. Grouped and multi-query
    heads follow from the shapes: there may be fewer key and value heads than query heads.

    Parameters
    ----------
    x : array (..., Q, E)
        float16, bfloat16, float32 or float64; half precision is computed in float32.
    weights : MultiheadWeights
        Projections (out, in) and optional biases, of the library, device and dtype of `x`.
    context : array (..., N, E_kv), optional
        The rows that keys and values are projected from, by default `x`; leading axes broadcast.
    heads : int
        Query heads H. The number of key heads follows from `weights` and must divide it.
    attention : {"dense", "chunked", "topk", "performer", "rfa"}, optional
        The kind of attention of every head: to all keys, the same in chunks of queries (1,024, as
        in the paper, unless `chunk_size` or `memory_budget` is given), to its k best keys, or one
        of the estimates of `topk_np.baselines`. By default "topk" with `k` or `p`, else "dense".
    k : int, optional
        Number of keys to keep for each query of each head, in top-k attention.
    rope : Rope, optional
        Rotary embedding of queries and keys by their positions; by default none.
    query_positions : int or int array (..., Q), optional
        Positions for `rope`, or the first of them; by default `query_offset`, or 0 without it.
    key_positions : int or int array (..., N), optional
        Those of the keys; by default `query_positions` in self-attention, and 0 otherwise.
    **options
        Those of the attention function except `return_lse`: of `topk_attention`, which also takes
        `p` with `max_k` in place of `k`, of `dense_attention`, or of one of `topk_np.baselines`.
        Arrays for `mask` and `bias` broadcast to (..., H, Q, N), and an `ALiBi` has a slope and a
        `T5Bias` a column for each of the H heads. `query_offset`, `query_lengths` and
        `key_lengths` are over the leading axes of `x`, without the heads.

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
    multihead_attention_fwd : also returns the residuals for the backward pass.

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
        `topk_attention_bwd` returns it.

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
    check_residuals(residuals, MultiheadResiduals, "multihead_attention_fwd")
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
    bias = getattr(grads, "bias", None)  # attention with random features has none
    if bias is not None:
        bias = array_namespace(bias).reshape(bias, residuals.bias_shape)
    return made._replace(weights=made.weights._replace(out=dweight, out_bias=dbias), bias=bias)


def attend_fwd(
    inputs: Projections,
    projected: tuple[Array, Array, Array],
    attend: Callable[..., tuple[Array, Any]],
    bias_shape: tuple[int, ...] = (),
) -> tuple[Array, MultiheadResiduals]:
    """Steps 2 and 3 of `multihead_attention_fwd`: attend, merge the heads and project back."""
    # 2, 3
    attended, residuals = attend(*projected)
    attended = merge_heads(attended, grouped=True)
    out = affine(attended, inputs.weights.out, inputs.weights.out_bias)
    return out, MultiheadResiduals(inputs, residuals, attended, bias_shape)
