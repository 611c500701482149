"""RFA: softmax attention estimated with random sines and cosines, and a gate that forgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Unpack

from topk_np._namespace import Array
from topk_np.baselines.features import TrigonometricFeatures
from topk_np.baselines.heads import LinearCall, LinearOptions, linear_call
from topk_np.options.check import check_dout, spell_out

FEATURES = 128
EPSILON = 1e-2


class RFAGrads(NamedTuple):
    """Gradients of random feature attention, each with the shape and dtype of its input."""

    query: Array
    key: Array
    value: Array
    gate: Array | None = None


@dataclass(frozen=True, eq=False)
class RFAResiduals:
    """The inputs and the random vectors, for `rfa_attention_bwd`."""

    call: LinearCall

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs: of the random vectors."""
        return self.call.nbytes


@spell_out(LinearOptions)
def rfa_attention(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    gate: Array | None = None,
    **options: Unpack[LinearOptions],
) -> Array:
    """
    Estimate softmax attention with random sines and cosines, in linear time.

    Of queries and keys only the directions count. With a gate, a causal query remembers the nearer
    past better.

    Parameters
    ----------
    query : array (..., Q, D)
        float16, bfloat16, float32 or float64; half precision is computed in float32. It is scaled
        to unit length, as is `key`; rows of zeros stay.
    key : array (..., N, D)
        Same library, device and dtype as `query`; leading axes broadcast.
    value : array (..., N, V)
        What is averaged.
    features : int, optional
        Number of random vectors, by default 128. Each makes two features, so that F is twice this.
    seed : int, optional
        What they are drawn from, by default 0, independent of each other; see `draw_projection`.
    projection : array (F / 2, D), optional
        The random vectors themselves, in the dtype of `query`, instead of `features` and `seed`.
        They have no gradient.
    gate : array (..., N), optional
        Numbers g from 0 to 1, only with `is_causal`: at each key, what was summed up before it is
        multiplied by g, and its own part by 1 - g. Leading axes broadcast. A masked key's gate has
        no effect.
    mask : bool array (..., 1, N), optional
        True where a key may be attended to, the same for all queries. A masked key contributes
        nothing, even if it is NaN. A query without any allowed key gives 0.
    is_causal : bool, default False
        Whether a query attends only to keys at or before its own position.
    query_offset : int, optional
        Position of the first query among the keys, required with `is_causal` where Q and N differ.
    key_lengths : int or int array, optional
        How many keys there are, of those with padding behind them; an array broadcasts to the
        leading axes.
    scale : float, optional
        Factor of the products of unit vectors, by default 1: 1 / sigma^2 in the paper.
    chunk_size : int, optional
        Positions to work on at once, by default 128; changes rounding only.
    workers : int or concurrent.futures.Executor, optional
        Threads that share the heads, by default one a core. Results are bit-identical for any
        number.

    Returns
    -------
    array (..., Q, V)
        In the dtype, library and device of the inputs.

    Raises
    ------
    TypeError
        If an input is not a floating array, the inputs differ in library, device or dtype, or an
        option has the wrong type.
    ValueError
        If shapes do not fit, `mask` differs from query to query, `query_offset` is missing,
        `features` or `seed` is given beside `projection`, `gate` is given without `is_causal`, or
        a gate lies outside of 0 to 1.

    See Also
    --------
    rfa_attention_fwd : also returns what the backward pass needs.
    topk_np.dense_attention : what is estimated, of unit vectors with this `scale`.

    Notes
    -----
    Peng et al., *Random Feature Attention*, 2021, arXiv:2103.02143: section 3.1, and 3.2
    for the gate, with which the sums follow ``S_t = g_t S_(t-1) + (1 - g_t) phi(k_t) v_t``. The
    features of ``x = sqrt(scale) q / |q|`` are ``sqrt(2 / F) (sin(w . x), cos(w . x))``, theorem 1,
    whose products are on average ``exp(x . y - scale)``. The vectors w are standard normal; the
    paper also learns a scale for each axis, which can be put into `projection`.

    Unlike exponentials, these products may be negative, and so may their sum be. As in the
    paper's code, a denominator below 0.01 counts as 0.01, and gets no gradient then.

    A NaN or infinity in an allowed key or value makes NaN of the rows that see it. Time is
    O((Q + N) F (D + V)), memory beyond the inputs and the output O(F (V + chunk_size)) a worker;
    the backward pass keeps a state (F, V + 1) for each block as well, F / chunk_size times what
    the output takes.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.baselines import rfa_attention
    >>> key, value = np.ones((4, 2)), np.arange(4.0)[:, None]
    >>> rfa_attention(key, key, value, is_causal=True)[:, 0].round(3)
    array([0. , 0.5, 1. , 1.5])
    >>> gate = np.full(4, 0.5)  # the last key weighs 1/2, the one before it 1/4, ...
    >>> rfa_attention(key, key, value, is_causal=True, gate=gate)[:, 0].round(3)
    array([0.   , 0.667, 1.429, 2.267])
    """
    return _call(query, key, value, gate=gate, **options).forward()


@spell_out(LinearOptions)
def rfa_attention_fwd(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    gate: Array | None = None,
    **options: Unpack[LinearOptions],
) -> tuple[Array, RFAResiduals]:
    """
    `rfa_attention`, and what its backward pass needs.

    Parameters, errors and cost are those of `rfa_attention`.

    Returns
    -------
    out : array (..., Q, V)
        What `rfa_attention` returns.
    residuals : RFAResiduals
        The random vectors. The inputs are referred to, not copied.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.baselines import rfa_attention_fwd
    >>> out, residuals = rfa_attention_fwd(np.eye(4), np.eye(4), np.eye(4), features=8)
    >>> residuals.nbytes == 8 * 4 * 8
    True
    """
    call = _call(query, key, value, gate=gate, **options)
    return call.forward(), RFAResiduals(call)


def rfa_attention_bwd(residuals: RFAResiduals, dout: Array, /) -> RFAGrads:
    """
    Gradients of `rfa_attention`, of the estimate itself.

    Parameters
    ----------
    residuals : RFAResiduals
        From `rfa_attention_fwd`.
    dout : array (..., Q, V)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    RFAGrads
        Gradients of query, key and value, each in the shape of its input: where an axis was
        broadcast, the sum over it.

    Raises
    ------
    TypeError
        If `residuals` is not from `rfa_attention_fwd`, or `dout` has another library, device
        or dtype than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Notes
    -----
    Time is about two and a half times that of the forward pass. Everything is computed again from
    the inputs: forward, one state for each block of positions; then the blocks are walked backward.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.baselines import rfa_attention_bwd, rfa_attention_fwd
    >>> out, residuals = rfa_attention_fwd(np.eye(4), np.eye(4), np.eye(4), is_causal=True)
    >>> np.sum(rfa_attention_bwd(residuals, np.ones_like(out)).value.round(12), axis=0)
    array([4., 4., 4., 4.])
    """
    if not isinstance(residuals, RFAResiduals):
        raise TypeError(
            "residuals must come from rfa_attention_fwd, got " + type(residuals).__name__
        )
    attention = residuals.call.attention
    dout = check_dout(
        attention.query, (*attention.batch.lead, attention.queries, attention.value.shape[-1]), dout
    )
    grads = residuals.call.backward(dout)
    gate = grads.pop("gate", None)
    return RFAGrads(**grads, gate=None if gate is None else gate[..., 0])


def _call(
    query: Array,
    key: Array,
    value: Array,
    *,
    gate: Array | None,
    **options: Unpack[LinearOptions],
) -> LinearCall:
    if options.get("scale") is None:
        options["scale"] = 1.0
    return linear_call(
        query,
        key,
        value,
        TrigonometricFeatures,
        default_features=FEATURES,
        orthogonal=False,
        least=EPSILON,
        gate=gate,
        **options,
    )
