"""Performer: softmax attention estimated with positive orthogonal random features (FAVOR+)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Unpack

from topk_np._namespace import Array
from topk_np.baselines.features import PositiveFeatures
from topk_np.baselines.heads import LinearCall, LinearOptions, linear_call
from topk_np.options.check import check_dout, spell_out

FEATURES = 256


class PerformerGrads(NamedTuple):
    """Gradients of Performer attention, each with the shape and dtype of its input."""

    query: Array
    key: Array
    value: Array


@dataclass(frozen=True, eq=False)
class PerformerResiduals:
    """The inputs and the random vectors, for `performer_attention_bwd`."""

    call: LinearCall

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs: of the random vectors."""
        return self.call.nbytes


@spell_out(LinearOptions)
def performer_attention(
    query: Array,
    key: Array,
    value: Array,
    /,
    **options: Unpack[LinearOptions],
) -> Array:
    """
    Estimate softmax attention with positive orthogonal random features, in linear time.

    The exponential of a score is, on average over random vectors, a product of a feature of the
    query and one of the key. So the keys can be summed up before any query is looked at.

    Parameters
    ----------
    query : array (..., Q, D)
        float16, bfloat16, float32 or float64; half precision is computed in float32.
    key : array (..., N, D)
        Same library, device and dtype as `query`; leading axes broadcast.
    value : array (..., N, V)
        What is averaged.
    features : int, optional
        Number F of random vectors, one feature each, by default 256.
    seed : int, optional
        What they are drawn from, by default 0; see `draw_projection`.
    projection : array (F, D), optional
        The random vectors themselves, in the dtype of `query`, instead of `features` and `seed`.
        They have no gradient.
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
        Factor of the products, by default ``1 / sqrt(D)``.
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
        If shapes do not fit, `mask` differs from query to query, `query_offset` is missing, or
        `features` or `seed` is given beside `projection`.

    See Also
    --------
    performer_attention_fwd : also returns what the backward pass needs.
    topk_np.dense_attention : what is estimated.

    Notes
    -----
    With x = sqrt(scale) q and y = sqrt(scale) k, ``exp(x . y)`` is estimated by the mean over the
    random vectors w of ``exp(w . x - |x|^2 / 2) exp(w . y - |y|^2 / 2)``: Choromanski et al.,
    *Rethinking Attention with Performers*, 2021, section 2.3, lemma 1, and 2.4, arXiv:2009.14794.

    Against overflow, exponents are taken relative to a maximum, as in the paper's code, but in
    a way that has no effect on the result: of a query, ``max_w (w . x)``, which cancels in the
    division, as ``|x|^2 / 2`` does; of a key, ``m = max_w (w . y)``, whose exponential with that of
    ``-|y|^2 / 2`` is a factor of the key, and factors are divided by the largest of the keys that
    the query sees. The paper's code instead subtracts one maximum over all keys and features, and
    adds 1e-4 to every feature so that none is 0; by both, a causal query would feel keys after its
    own. Here the denominator is at least the smallest normal number of the dtype (1e-38 in
    float32), and nothing else is added.

    A NaN or infinity in an allowed key or value makes NaN of the rows that see it. Time is
    O((Q + N) F (D + V)), memory beyond the inputs and the output O(F (V + chunk_size)) a worker;
    the backward pass keeps a state (F, V + 1) for each block as well, F / chunk_size times what
    the output takes.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import dense_attention
    >>> from topk_np.baselines import performer_attention
    >>> query, key, value = np.random.default_rng(0).random((3, 100, 8))
    >>> exact = dense_attention(query, key, value)
    >>> for features in (16, 256, 4096):
    ...     out = performer_attention(query, key, value, features=features)
    ...     print(f"{np.linalg.norm(out - exact) / np.linalg.norm(exact):.3f}")
    0.022
    0.010
    0.002
    """
    return _call(query, key, value, **options).forward()


@spell_out(LinearOptions)
def performer_attention_fwd(
    query: Array,
    key: Array,
    value: Array,
    /,
    **options: Unpack[LinearOptions],
) -> tuple[Array, PerformerResiduals]:
    """
    `performer_attention`, and what its backward pass needs.

    Parameters, errors and cost are those of `performer_attention`.

    Returns
    -------
    out : array (..., Q, V)
        What `performer_attention` returns.
    residuals : PerformerResiduals
        The random vectors. The inputs are referred to, not copied.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.baselines import performer_attention_fwd
    >>> out, residuals = performer_attention_fwd(np.eye(4), np.eye(4), np.eye(4), features=8)
    >>> residuals.nbytes == 8 * 4 * 8
    True
    """
    call = _call(query, key, value, **options)
    return call.forward(), PerformerResiduals(call)


def performer_attention_bwd(residuals: PerformerResiduals, dout: Array, /) -> PerformerGrads:
    """
    Gradients of `performer_attention`, of the estimate itself.

    Parameters
    ----------
    residuals : PerformerResiduals
        From `performer_attention_fwd`.
    dout : array (..., Q, V)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    PerformerGrads
        Gradients of query, key and value, each in the shape of its input: where an axis was
        broadcast, the sum over it.

    Raises
    ------
    TypeError
        If `residuals` is not from `performer_attention_fwd`, or `dout` has another library, device
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
    >>> from topk_np.baselines import performer_attention_bwd, performer_attention_fwd
    >>> out, residuals = performer_attention_fwd(np.eye(4), np.eye(4), np.eye(4), is_causal=True)
    >>> np.sum(performer_attention_bwd(residuals, np.ones_like(out)).value.round(12), axis=0)
    array([4., 4., 4., 4.])
    """
    if not isinstance(residuals, PerformerResiduals):
        raise TypeError(
            "residuals must come from performer_attention_fwd, got " + type(residuals).__name__
        )
    attention = residuals.call.attention
    dout = check_dout(
        attention.query, (*attention.batch.lead, attention.queries, attention.value.shape[-1]), dout
    )
    return PerformerGrads(**residuals.call.backward(dout))


def _call(query: Array, key: Array, value: Array, **options: Unpack[LinearOptions]) -> LinearCall:
    return linear_call(
        query,
        key,
        value,
        PositiveFeatures,
        default_features=FEATURES,
        orthogonal=True,
        least=None,
        **options,
    )
