"""The feed-forward layer, forward and backward: top-k, and dense as its oracle."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import NamedTuple

from topk_np._namespace import Array
from topk_np.activations import Activation
from topk_np.core import dense, passes
from topk_np.core.residuals import Residuals, TopKResiduals
from topk_np.options.check import check_dout, ffn_call
from topk_np.schedule.plan import schedule_call, schedule_dense
from topk_np.schedule.threads import check_workers


class FFNGrads(NamedTuple):
    """Gradients of the feed-forward layer, each with the shape and dtype of its input."""

    x: Array
    keys: Array
    values: Array
    key_bias: Array | None
    """None if the layer had none, as for the next two."""
    value_bias: Array | None
    gate: Array | None


class TopKFFNResiduals(TopKResiduals):
    """Input of `topk_ffn_bwd`: the inputs, and K scores and K indices a token."""


class DenseFFNResiduals(Residuals):
    """Input of `dense_ffn_bwd`: the inputs alone; scores are computed once more."""


def topk_ffn(
    x: Array,
    keys: Array,
    values: Array,
    /,
    *,
    k: int,
    activation: str | Activation = "relu",
    key_bias: Array | None = None,
    value_bias: Array | None = None,
    gate: Array | None = None,
    select: str = "score",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
) -> Array:
    """
    Feed-forward layer in which every token uses its `k` best units.

    The layer is attention with other names, ``activation(x keysᵀ + key_bias) values``: tokens are
    the queries, and each hidden unit has a key (a row of the first matrix) and a value (a row of
    the second). Exact for what is kept.

    Parameters
    ----------
    x : array (..., D)
        Tokens; float16, bfloat16, float32 or float64. Half precision is computed in float32.
    keys : array (F, D)
        The first matrix, a row for each of the F hidden units.
    values : array (F, V)
        The second matrix, a row for each unit.
    k : int
        Units to keep for each token, at least 1. Among equals the lower index is kept.
    activation : {"relu", "gelu", "gelu_tanh", "silu", "identity", "softmax"} or Activation
        "gelu" is the exact form with erf, "softmax" normalises over the kept units; one of your own
        is an `Activation`, as `topk_np.activations.elementwise` makes.
    key_bias : array (F,), optional
        Added to ``x keysᵀ``.
    value_bias : array (V,), optional
        Added to the output.
    gate : array (F, D), optional
        Makes the unit a gated one, ``activation(x gateᵀ) * (x keysᵀ + key_bias)``: with "silu"
        SwiGLU, with "gelu" GEGLU, with "relu" ReGLU.
    select : {"score", "activation"}
        Rank units by what goes into the activation (the gate's score where there is a gate), or by
        the absolute value of what comes out, times the linear factor where there is a gate. For
        ReLU without a gate both keep the same active units; for others "activation" loses less.
    chunk_size : int, optional
        Tokens to work on at once; by default as many as `memory_budget` allows.
    memory_budget : int, optional
        Bytes of scratch memory for all workers together, by default 64 MiB.
    workers : int or concurrent.futures.Executor, optional
        Threads that share the work, by default one a core; an executor must run threads. Results
        are bit-identical for any number. Other libraries than NumPy ignore it.

    Returns
    -------
    array (..., V)
        In the dtype, library and device of the inputs.

    Raises
    ------
    TypeError
        If an input is not a floating array, the inputs differ in library, device or dtype, `k` is
        not an integer, or `workers` is a process pool.
    ValueError
        If shapes do not fit, `k` or `chunk_size` is below 1, `activation` or `select` is unknown,
        or `memory_budget` is less than one token needs.

    See Also
    --------
    dense_ffn : the same with every unit.
    topk_ffn_fwd : also returns what the backward pass needs.

    Notes
    -----
    Time is O(T F D) for the scores of T tokens and O(T k V) for the output. Memory beyond the
    inputs is O(T (k + V)) and one chunk of scores. Source: Gupta et al. 2021, section 2.2,
    arXiv:2106.06899.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_ffn
    >>> topk_ffn(np.array([[2.0, 1.0]]), np.eye(2), np.eye(2), k=1)
    array([[2., 0.]])
    """
    call = ffn_call(x, keys, values, (k,), activation, key_bias, value_bias, gate, select)
    schedule = schedule_call(call, chunk_size, memory_budget)
    out, _ = passes.forward(call, schedule, check_workers(workers))
    return call.xp.reshape(out, (*x.shape[:-1], out.shape[-1]))


def topk_ffn_fwd(
    x: Array,
    keys: Array,
    values: Array,
    /,
    *,
    k: int,
    activation: str | Activation = "relu",
    key_bias: Array | None = None,
    value_bias: Array | None = None,
    gate: Array | None = None,
    select: str = "score",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
) -> tuple[Array, TopKFFNResiduals]:
    """
    `topk_ffn`, and what its backward pass needs.

    Parameters, errors and cost are those of `topk_ffn`.

    Returns
    -------
    out : array (..., V)
        What `topk_ffn` returns.
    residuals : TopKFFNResiduals
        Scores and indices of the kept units, K = min(k, F) a token, and for a gated unit their
        linear factors: 8 or 12 K bytes a token in float32. The inputs are referred to, not copied.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_ffn_fwd
    >>> out, residuals = topk_ffn_fwd(np.array([[2.0, 1.0]]), np.eye(2), np.eye(2), k=1)
    >>> residuals.indices, residuals.scores
    (array([[0]], dtype=int32), array([[2.]]))
    """
    call = ffn_call(x, keys, values, (k,), activation, key_bias, value_bias, gate, select)
    schedule = schedule_call(call, chunk_size, memory_budget)
    threads, lead = check_workers(workers), tuple(x.shape[:-1])
    out, kept = passes.forward(call, schedule, threads, keeping=True)
    residuals = TopKFFNResiduals(call, schedule, threads, lead, kept=kept)
    return call.xp.reshape(out, (*lead, out.shape[-1])), residuals


def topk_ffn_bwd(residuals: TopKFFNResiduals, dout: Array, /) -> FFNGrads:
    """
    Gradients of `topk_ffn`.

    A unit that a token did not keep gets exactly no gradient from it.

    Parameters
    ----------
    residuals : TopKFFNResiduals
        From `topk_ffn_fwd`.
    dout : array (..., V)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    FFNGrads
        Gradients of x, keys, values, key_bias, value_bias and gate; None for what was not given.

    Raises
    ------
    TypeError
        If `residuals` is not from `topk_ffn_fwd`, or `dout` has another library, device or dtype
        than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Notes
    -----
    Time is O(T k (D + V)) for T tokens.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_ffn_bwd, topk_ffn_fwd
    >>> out, residuals = topk_ffn_fwd(np.array([[2.0, 1.0]]), np.eye(2), np.eye(2), k=1)
    >>> topk_ffn_bwd(residuals, np.ones_like(out)).x
    array([[1., 0.]])
    """
    if not isinstance(residuals, TopKFFNResiduals):
        raise TypeError("residuals must come from topk_ffn_fwd, got " + type(residuals).__name__)
    call, schedule = residuals.call, residuals.schedule
    dout, workers = _check_dout(residuals, dout), check_workers(residuals.workers)
    return _grads(residuals, passes.backward(call, schedule, workers, residuals.kept, dout))


def dense_ffn(
    x: Array,
    keys: Array,
    values: Array,
    /,
    *,
    activation: str | Activation = "relu",
    key_bias: Array | None = None,
    value_bias: Array | None = None,
    gate: Array | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
) -> Array:
    """
    Feed-forward layer over all units: ``activation(x keysᵀ + key_bias) values + value_bias``.

    The oracle of `topk_ffn`, with the same options except `k` and `select`. Without `chunk_size`
    and `memory_budget` all tokens are one chunk.

    Parameters
    ----------
    x : array (..., D)
        Tokens; float16, bfloat16, float32 or float64. Half precision is computed in float32.
    keys : array (F, D)
        The first matrix, a row for each of the F hidden units.
    values : array (F, V)
        The second matrix, a row for each unit.
    activation : {"relu", "gelu", "gelu_tanh", "silu", "identity", "softmax"} or Activation
        As in `topk_ffn`; "softmax" normalises over all units.
    key_bias : array (F,), optional
        Added to ``x keysᵀ``.
    value_bias : array (V,), optional
        Added to the output.
    gate : array (F, D), optional
        Makes the unit a gated one, ``activation(x gateᵀ) * (x keysᵀ + key_bias)``.
    chunk_size : int, optional
        Tokens to work on at once.
    memory_budget : int, optional
        Bytes of scratch memory, from which the chunk size follows if it is not given.
    workers : int or concurrent.futures.Executor, optional
        Threads that share the work, by default one a core.

    Returns
    -------
    array (..., V)
        In the dtype, library and device of the inputs.

    Raises
    ------
    TypeError, ValueError
        As `topk_ffn`.

    Notes
    -----
    Time is O(T F (D + V)) for T tokens. Memory beyond the inputs is O(chunk_size F) a worker.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import dense_ffn
    >>> dense_ffn(np.array([[2.0, -1.0]]), np.eye(2), np.eye(2))
    array([[2., 0.]])
    """
    out, _ = dense_ffn_fwd(
        x,
        keys,
        values,
        activation=activation,
        key_bias=key_bias,
        value_bias=value_bias,
        gate=gate,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
        workers=workers,
    )
    return out


def dense_ffn_fwd(
    x: Array,
    keys: Array,
    values: Array,
    /,
    *,
    activation: str | Activation = "relu",
    key_bias: Array | None = None,
    value_bias: Array | None = None,
    gate: Array | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
) -> tuple[Array, DenseFFNResiduals]:
    """
    `dense_ffn`, and what its backward pass needs.

    Parameters, errors and cost are those of `dense_ffn`.

    Returns
    -------
    out : array (..., V)
        What `dense_ffn` returns.
    residuals : DenseFFNResiduals
        The inputs by reference and nothing else: the backward pass computes the scores once more.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import dense_ffn_fwd
    >>> out, residuals = dense_ffn_fwd(np.ones(2), np.eye(2), np.eye(2))
    >>> out, residuals.nbytes
    (array([1., 1.]), 0)
    """
    call = ffn_call(x, keys, values, None, activation, key_bias, value_bias, gate)
    schedule = schedule_dense(call, chunk_size, memory_budget)
    threads, lead = check_workers(workers), tuple(x.shape[:-1])
    out = call.xp.reshape(dense.forward(call, schedule, threads), (*lead, values.shape[-1]))
    return out, DenseFFNResiduals(call, schedule, threads, lead)


def dense_ffn_bwd(residuals: DenseFFNResiduals, dout: Array, /) -> FFNGrads:
    """
    Gradients of `dense_ffn`.

    Parameters
    ----------
    residuals : DenseFFNResiduals
        From `dense_ffn_fwd`.
    dout : array (..., V)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    FFNGrads
        Gradients of x, keys, values, key_bias, value_bias and gate; None for what was not given.

    Raises
    ------
    TypeError, ValueError
        As `topk_ffn_bwd`.

    Notes
    -----
    Time is O(T F (D + V)) for T tokens; memory as in the forward pass, chunk by chunk.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import dense_ffn_bwd, dense_ffn_fwd
    >>> out, residuals = dense_ffn_fwd(np.array([2.0, -1.0]), np.eye(2), np.eye(2))
    >>> dense_ffn_bwd(residuals, np.ones(2)).x
    array([1., 0.])
    """
    if not isinstance(residuals, DenseFFNResiduals):
        raise TypeError("residuals must come from dense_ffn_fwd, got " + type(residuals).__name__)
    dout, workers = _check_dout(residuals, dout), check_workers(residuals.workers)
    return _grads(residuals, dense.backward(residuals.call, residuals.schedule, workers, dout))


def _check_dout(residuals: Residuals, dout: Array) -> Array:
    """(1, T, V): the gradient of the output, checked."""
    call, width = residuals.call, int(residuals.call.value.shape[-1])
    dout = check_dout(call.query, (*residuals.lead, width), dout)
    return call.xp.reshape(dout, (1, call.queries, width))


def _grads(residuals: Residuals, grads: dict[str, Array]) -> FFNGrads:
    """The gradients under the names and in the shapes of the layer's inputs."""
    x, gate = grads["query"], grads.get("gate")
    return FFNGrads(
        residuals.call.xp.reshape(x, (*residuals.lead, x.shape[-1])),
        grads["key"][0, ...],
        grads["value"][0, ...],
        grads["key_bias"][0, :, 0] if "key_bias" in grads else None,
        grads["value_bias"][0, 0, :] if "value_bias" in grads else None,
        None if gate is None else gate[0, ...],
    )
