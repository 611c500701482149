"""The dense feed-forward layer, forward and backward: the oracle of `topk_np.ffn`."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field

from topk_np._namespace import Array
from topk_np.chunking import plan_dense_chunk
from topk_np.dense import core
from topk_np.ffn import FFNGrads, ffn_grads
from topk_np.inputs import check_dout, ffn_problem
from topk_np.problem import Problem
from topk_np.workers import check_workers


@dataclass(frozen=True, eq=False)
class DenseFFNResiduals:
    """What `dense_ffn_bwd` needs: the inputs and nothing else; scores are made again."""

    problem: Problem
    lead: tuple[int, ...]
    """The leading axes of `x`, which are one axis of tokens in `problem`."""
    chunk_size: int
    workers: int | Executor = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return 0


def dense_ffn(
    x: Array,
    keys: Array,
    values: Array,
    /,
    *,
    activation: str = "relu",
    key_bias: Array | None = None,
    value_bias: Array | None = None,
    gate: Array | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    workers: int | Executor | None = None,
) -> Array:
    """
    Feed-forward layer over all units: ``activation(x keysᵀ + key_bias) values + value_bias``.

    The oracle of `topk_ffn`, with the same options but `k` and `select`. Without `chunk_size` and
    `memory_budget` all tokens are one chunk.

    Parameters
    ----------
    x : array (..., D)
        Tokens; float16, bfloat16, float32 or float64. Half precision is computed in float32.
    keys : array (F, D)
        The first matrix, a row for each of the F hidden units.
    values : array (F, V)
        The second matrix, a row for each unit.
    activation : {"relu", "gelu", "gelu_tanh", "silu", "identity", "softmax"}
        "gelu" is the exact form with erf.
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
    activation: str = "relu",
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
        The inputs by reference and nothing else: the backward pass makes the scores again.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import dense_ffn_fwd
    >>> out, residuals = dense_ffn_fwd(np.ones(2), np.eye(2), np.eye(2))
    >>> out, residuals.nbytes
    (array([1., 1.]), 0)
    """
    problem = ffn_problem(x, keys, values, activation, key_bias, value_bias, gate)
    threads = check_workers(workers)
    chunk = plan_dense_chunk(problem.dense_sizes, chunk_size, memory_budget)
    lead = tuple(x.shape[:-1])
    out = problem.xp.reshape(core.forward(problem, chunk, threads), (*lead, values.shape[-1]))
    return out, DenseFFNResiduals(problem, lead, chunk, threads)


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
    problem = residuals.problem
    dout = check_dout(problem.query, (*residuals.lead, problem.out_shape[-1]), dout)
    dout = problem.xp.reshape(dout, problem.out_shape)
    grads = core.backward(problem, dout, residuals.chunk_size, residuals.workers)
    return ffn_grads(residuals.lead, grads)
