"""The feed-forward layer of a block: all units or the k best, plain or gated, by names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from topk_np._namespace import Array, check_choice
from topk_np.dense.ffn import DenseFFNResiduals, dense_ffn, dense_ffn_bwd, dense_ffn_fwd
from topk_np.ffn import FFNGrads, TopKFFNResiduals, topk_ffn, topk_ffn_bwd, topk_ffn_fwd
from topk_np.inputs import SELECTS
from topk_np.layers.linear import check_residuals


class FeedForwardGrads(NamedTuple):
    """Gradients of a feed-forward layer, those of the parameters by their names."""

    x: Array
    params: dict[str, Array]


def feed_forward(
    x: Array,
    params: Mapping[str, Array],
    /,
    *,
    k: int | None = None,
    select: str = "score",
    **options: Any,
) -> Array:
    """
    All units of a feed-forward layer, or the k best for each token.

    Parameters
    ----------
    x : array (..., D)
        Tokens.
    params : dict of arrays
        "keys" (F, D) and "values" (F, V); where there are such, "key_bias" (F,), "value_bias" (V,),
        and the "gate" (F, D) of gated units.
    k : int, optional
        Units to keep for each token; by default all.
    select : {"score", "activation"}
        What the k best are best in, as in `topk_ffn`.
    **options
        The others of `topk_ffn` and `dense_ffn`: `activation`, `chunk_size`, `memory_budget`,
        `workers`.

    Returns
    -------
    array (..., V)
        In the dtype, library and device of the inputs.

    Raises
    ------
    TypeError, ValueError
        As `topk_ffn`.

    See Also
    --------
    topk_np.topk_ffn, topk_np.dense_ffn : the same with the arrays one by one.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import feed_forward
    >>> params = {"keys": np.eye(2), "values": np.eye(2), "gate": np.ones((2, 2))}
    >>> feed_forward(np.array([[2.0, 1.0]]), params, activation="silu").round(2)
    array([[5.72, 2.86]])
    """
    keys, values, others = _named(params, select)
    if k is None:
        return dense_ffn(x, keys, values, **others, **options)
    return topk_ffn(x, keys, values, k=k, select=select, **others, **options)


def feed_forward_fwd(
    x: Array,
    params: Mapping[str, Array],
    /,
    *,
    k: int | None = None,
    select: str = "score",
    **options: Any,
) -> tuple[Array, TopKFFNResiduals | DenseFFNResiduals]:
    """
    `feed_forward`, and what its backward pass needs.

    Parameters, errors and cost are those of `feed_forward`.

    Returns
    -------
    out : array (..., V)
        What `feed_forward` returns.
    residuals : TopKFFNResiduals or DenseFFNResiduals
        Those of `topk_ffn_fwd`, or without `k` of `dense_ffn_fwd`.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import feed_forward_fwd
    >>> params = {"keys": np.eye(4), "values": np.eye(4)}
    >>> out, residuals = feed_forward_fwd(np.eye(4), params, k=1)
    >>> residuals.indices.tolist()
    [[0], [1], [2], [3]]
    """
    keys, values, others = _named(params, select)
    if k is None:
        return dense_ffn_fwd(x, keys, values, **others, **options)
    return topk_ffn_fwd(x, keys, values, k=k, select=select, **others, **options)


def feed_forward_bwd(
    residuals: TopKFFNResiduals | DenseFFNResiduals, dout: Array, /
) -> FeedForwardGrads:
    """
    Gradients of `feed_forward`.

    Parameters
    ----------
    residuals : TopKFFNResiduals or DenseFFNResiduals
        From `feed_forward_fwd`.
    dout : array (..., V)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    FeedForwardGrads
        Gradients of x, and of the parameters that were given.

    Raises
    ------
    TypeError
        If `residuals` is not from `feed_forward_fwd`, or `dout` has another library, device or
        dtype than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import feed_forward_bwd, feed_forward_fwd
    >>> params = {"keys": np.eye(2), "values": np.eye(2)}
    >>> out, residuals = feed_forward_fwd(np.array([[2.0, 1.0]]), params, k=1)
    >>> feed_forward_bwd(residuals, np.ones((1, 2))).params["keys"]
    array([[2., 1.],
           [0., 0.]])
    """
    topk = isinstance(residuals, TopKFFNResiduals)
    check_residuals(residuals, TopKFFNResiduals if topk else DenseFFNResiduals, "feed_forward_fwd")
    backward: Any = topk_ffn_bwd if topk else dense_ffn_bwd
    grads: FFNGrads = backward(residuals, dout)
    named = {name: grad for name, grad in grads._asdict().items() if grad is not None}
    return FeedForwardGrads(named.pop("x"), named)


def _named(params: Mapping[str, Array], select: str) -> tuple[Array, Array, dict[str, Array]]:
    """Keys, values, and whatever else there is, checked as `select` is."""
    check_choice("select", select, SELECTS)
    missing = [name for name in ("keys", "values") if name not in params]
    wrong = [name for name in params if name not in FFNGrads._fields[1:]]
    if missing or wrong:
        raise ValueError(
            'params must have "keys" and "values", and may have "key_bias", "value_bias" and '
            f'"gate", got {", ".join(map(repr, params))}'
        )
    others = dict(params)
    return others.pop("keys"), others.pop("values"), others
