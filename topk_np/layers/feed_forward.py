"""The feed-forward layer with its parameters by name: all units or the k best, plain or gated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from topk_np._namespace import Array, check_choice
from topk_np._vjp import output_of, residuals_on_demand
from topk_np.ffn import (
    DenseFFNResiduals,
    FFNGrads,
    TopKFFNResiduals,
    dense_ffn_bwd,
    dense_ffn_fwd,
    topk_ffn,
    topk_ffn_bwd,
    topk_ffn_fwd,
)
from topk_np.layers.linear import check_residuals
from topk_np.options.check import SELECTS


class FeedForwardGrads(NamedTuple):
    """Gradients of a feed-forward layer, those of the parameters by name."""

    x: Array
    params: dict[str, Array]


@residuals_on_demand
def feed_forward_fwd(
    keep: bool,
    x: Array,
    params: Mapping[str, Array],
    /,
    *,
    k: int | None = None,
    select: str = "score",
    **options: Any,
) -> tuple[Array, TopKFFNResiduals | DenseFFNResiduals | None]:
    """
    Feed-forward layer that also returns the residuals for its backward pass.

    Parameters, errors and cost are those of `feed_forward`.

    Returns
    -------
    out : array (..., V)
        The output of `feed_forward`.
    residuals : TopKFFNResiduals or DenseFFNResiduals
        Those of `topk_ffn_fwd`, or of `dense_ffn_fwd` if `k` is None.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import feed_forward_fwd
    >>> params = {"keys": np.eye(4), "values": np.eye(4)}
    >>> out, residuals = feed_forward_fwd(np.eye(4), params, k=1)
    >>> residuals.indices.tolist()
    [[0], [1], [2], [3]]
    """
    check_choice("select", select, SELECTS)
    keys, values, others = _named(params)
    if k is None:
        return dense_ffn_fwd(x, keys, values, **others, **options)
    options |= {"k": k, "select": select}
    if keep:
        return topk_ffn_fwd(x, keys, values, **others, **options)
    return topk_ffn(x, keys, values, **others, **options), None


@output_of(feed_forward_fwd)
def feed_forward() -> Array:
    """
    Feed-forward layer with all of its units, or with the k best for each token.

    Parameters
    ----------
    x : array (..., D)
        Tokens.
    params : dict of arrays
        "keys" (F, D) and "values" (F, V), and optionally "key_bias" (F,), "value_bias" (V,), and
        the "gate" (F, D) of gated units.
    k : int, optional
        Number of units to keep for each token; by default all.
    select : {"score", "activation"}
        The quantity that ranks the units, as in `topk_ffn`.
    **options
        The other options of `topk_ffn` and `dense_ffn`: `activation`, `chunk_size`,
        `memory_budget` and `workers`.

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
    topk_np.topk_ffn, topk_np.dense_ffn : the same with one argument for each array.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import feed_forward
    >>> params = {"keys": np.eye(2), "values": np.eye(2), "gate": np.ones((2, 2))}
    >>> feed_forward(np.array([[2.0, 1.0]]), params, activation="silu").round(2)
    array([[5.72, 2.86]])
    """


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


def _named(params: Mapping[str, Array]) -> tuple[Array, Array, dict[str, Array]]:
    """Check the names of the parameters, and return keys, values, and the others by name."""
    missing = [name for name in ("keys", "values") if name not in params]
    wrong = [name for name in params if name not in FFNGrads._fields[1:]]
    if missing or wrong:
        raise ValueError(
            'params must have "keys" and "values", and may have "key_bias", "value_bias" and '
            f'"gate", got {", ".join(map(repr, params))}'
        )
    others = dict(params)
    return others.pop("keys"), others.pop("values"), others
