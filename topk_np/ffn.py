"""The top-k feed-forward layer, forward and backward."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

from topk_np import core
from topk_np._namespace import Array, array_namespace
from topk_np.chunking import Chunks, plan_chunks
from topk_np.inputs import check_dout, ffn_problem
from topk_np.problem import Problem
from topk_np.rules import make_rule
from topk_np.workers import check_workers


class FFNGrads(NamedTuple):
    """Gradients of the feed-forward layer, each with the shape and dtype of its input."""

    x: Array
    keys: Array
    values: Array
    key_bias: Array | None
    """None if the layer had none, as for the next two."""
    value_bias: Array | None
    gate: Array | None


@dataclass(frozen=True, eq=False)
class TopKFFNResiduals:
    """What `topk_ffn_bwd` needs: the inputs, and K scores and K indices a token."""

    problem: Problem
    lead: tuple[int, ...]
    """The leading axes of `x`, which are one axis of tokens in `problem`."""
    kept: core.Kept = field(repr=False)
    chunks: Chunks
    workers: int | Executor = field(repr=False)

    @property
    def scores(self) -> Array:
        """(..., K) what went into the activation of the kept units; -inf in unused slots."""
        return self._with_lead(self.kept.scores.array)

    @property
    def indices(self) -> Array:
        """(..., K) int32, ascending; -1 in unused slots."""
        return self._with_lead(self.kept.indices.array)

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return self.kept.nbytes

    def _with_lead(self, array: Array) -> Array:
        return self.problem.xp.reshape(array, (*self.lead, array.shape[-1]))


def topk_ffn(
    x: Array,
    keys: Array,
    values: Array,
    /,
    *,
    k: int,
    activation: str = "relu",
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
    activation : {"relu", "gelu", "gelu_tanh", "silu", "identity", "softmax"}
        "gelu" is the exact form with erf. "softmax" normalises over the kept units.
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
    problem = ffn_problem(x, keys, values, activation, key_bias, value_bias, gate, select)
    rule = make_rule(k)
    chunks = plan_chunks(problem.sizes(rule), chunk_size, memory_budget)
    out = core.forward(problem, rule, chunks, check_workers(workers))
    return problem.xp.reshape(out, (*x.shape[:-1], out.shape[-1]))


def topk_ffn_fwd(
    x: Array,
    keys: Array,
    values: Array,
    /,
    *,
    k: int,
    activation: str = "relu",
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
    problem = ffn_problem(x, keys, values, activation, key_bias, value_bias, gate, select)
    rule = make_rule(k)
    chunks = plan_chunks(problem.sizes(rule), chunk_size, memory_budget)
    threads = check_workers(workers)
    kept = core.Kept.empty(problem, rule)
    out = core.forward(problem, rule, chunks, threads, kept)
    lead = tuple(x.shape[:-1])
    residuals = TopKFFNResiduals(problem, lead, kept, chunks, threads)
    return problem.xp.reshape(out, (*lead, out.shape[-1])), residuals


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
    problem = residuals.problem
    dout = check_dout(problem.query, (*residuals.lead, problem.out_shape[-1]), dout)
    dout = problem.xp.reshape(dout, problem.out_shape)
    grads = core.backward(problem, residuals.kept, dout, residuals.chunks, residuals.workers)
    return ffn_grads(residuals.lead, grads)


def ffn_grads(lead: tuple[int, ...], grads: dict[str, Array]) -> FFNGrads:
    """The gradients of a problem under the names and in the shapes of the layer's inputs."""
    x = grads["query"]
    xp = array_namespace(x)
    return FFNGrads(
        xp.reshape(x, (*lead, x.shape[-1])),
        grads["key"],
        grads["value"],
        grads["key_bias"][:, 0] if "key_bias" in grads else None,
        grads["value_bias"][0, :] if "value_bias" in grads else None,
        grads.get("gate"),
    )
