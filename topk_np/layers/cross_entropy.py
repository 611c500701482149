"""Cross-entropy of logits and target classes, forward and backward."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from array_api_compat import device

from topk_np._namespace import (
    Array,
    array_namespace,
    cast,
    check_floats,
    check_integer,
    check_ndim,
    check_number,
    compute_dtype,
    nbytes,
    plain,
)
from topk_np._vjp import output_of
from topk_np.activations import logsumexp
from topk_np.kernels import engine
from topk_np.layers.linear import as_rows, check_integers, check_residuals
from topk_np.options.check import check_dout


@dataclass(frozen=True, eq=False)
class CrossEntropyResiduals:
    """Residuals of `cross_entropy`: the logits, and three numbers a row."""

    logits: Array = field(repr=False)
    targets: Array
    """(T, 1) int32, 0 where the row does not count."""
    counts: Array
    """(T, 1) True where the row counts."""
    lse: Array
    """(T, 1) the log-sum-exp of the logits."""
    label_smoothing: float

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return nbytes(self.targets) + nbytes(self.lse) + int(math.prod(self.counts.shape))


def cross_entropy_fwd(
    logits: Array,
    targets: Array,
    /,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> tuple[Array, CrossEntropyResiduals]:
    """
    Cross-entropy that also returns the residuals for its backward pass.

    Parameters, errors and cost are those of `cross_entropy`.

    Returns
    -------
    loss : array ()
        The output of `cross_entropy`.
    residuals : CrossEntropyResiduals
        A reference to the logits, and three numbers a row.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import cross_entropy_fwd
    >>> loss, residuals = cross_entropy_fwd(np.zeros((2, 1000)), np.array([3, -100]))
    >>> residuals.nbytes
    26
    """
    xp = check_floats({"logits": logits})
    check_ndim("logits", logits, 1, "(..., C)")
    smoothing = check_number("label_smoothing", label_smoothing)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing must be at least 0 and at most 1, got {smoothing}")
    logits = plain(logits)
    rows = as_rows(cast(xp, logits, compute_dtype(xp, logits)))
    targets, counts = _check_targets(logits, targets, ignore_index)
    # 1 lse = log(sum(exp(logits)))
    # 2 aim = (1 - smoothing) * logits[target] + smoothing * mean(logits)
    # 3 loss = mean(lse - aim), of the rows that count
    lse = logsumexp(rows)
    aim = xp.take_along_axis(rows, xp.astype(targets, xp.int64), axis=1)
    if smoothing > 0:
        aim = (1 - smoothing) * aim + smoothing * xp.mean(rows, axis=1, keepdims=True)
    total = xp.sum(xp.where(counts, lse - aim, 0.0))
    residuals = CrossEntropyResiduals(logits, targets, counts, lse, smoothing)
    return xp.asarray(total / _number(counts, total.dtype)), residuals


@output_of(cross_entropy_fwd)
def cross_entropy() -> Array:
    """
    Cross-entropy: the mean of ``-log softmax(logits)[target]`` over the targets that count.

    Parameters
    ----------
    logits : array (..., C)
        Unnormalised log probabilities of C classes: float16, bfloat16, float32 or float64.
    targets : integer array (...)
        From 0 to C - 1, or `ignore_index`.
    label_smoothing : float, default 0.0
        The share of each target, at least 0 and at most 1, that is spread evenly over all classes.
    ignore_index : int, default -100
        Marks a target that does not count: it adds nothing to the sum or the number of targets.

    Returns
    -------
    array ()
        In the dtype computed in, float32 for half precision; 0 if no target counts.

    Raises
    ------
    TypeError
        If `logits` is not a floating array, `targets` are not integers, or they differ in library
        or device.
    ValueError
        If shapes do not fit, a target is not a class, or `label_smoothing` is out of its range.

    See Also
    --------
    cross_entropy_fwd : also returns the residuals for the backward pass.

    Notes
    -----
    Time is O(T C) for T rows. Nothing overflows: the largest logit of a row is subtracted first.
    Label smoothing: Szegedy et al. 2016, section 7, arXiv:1512.00567.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import cross_entropy
    >>> cross_entropy(np.zeros((2, 2)), np.array([1, -100]))  # log(2)
    array(0.69314718)
    """


def cross_entropy_bwd(residuals: CrossEntropyResiduals, dout: Array | float, /) -> Array:
    """
    Gradient of `cross_entropy` with respect to the logits.

    Parameters
    ----------
    residuals : CrossEntropyResiduals
        From `cross_entropy_fwd`.
    dout : array () or float
        Gradient with respect to the loss, in its dtype; 1.0 if the loss itself is minimised.

    Returns
    -------
    array (..., C)
        In the dtype of the logits; exactly 0 in rows that do not count.

    Raises
    ------
    TypeError
        If `residuals` is not from `cross_entropy_fwd`, or `dout` is neither a number nor an
        array of the library, device and dtype of the loss.
    ValueError
        If the shape of `dout` is not ().

    Notes
    -----
    The gradient of a row is its softmax minus the smoothed target, divided by the number of rows
    that count.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import cross_entropy_bwd, cross_entropy_fwd
    >>> loss, residuals = cross_entropy_fwd(np.zeros((1, 4)), np.array([3]))
    >>> cross_entropy_bwd(residuals, 1.0)
    array([[ 0.25,  0.25,  0.25, -0.75]])
    """
    check_residuals(residuals, CrossEntropyResiduals, "cross_entropy_fwd")
    logits, targets, counts = residuals.logits, residuals.targets, residuals.counts
    xp = array_namespace(logits)
    dtype = compute_dtype(xp, logits)
    scale: Any = dout
    if isinstance(dout, (int, float)):
        scale = check_number("dout", dout)
    else:
        scale = check_dout(residuals.lse, (), xp.asarray(dout))
    rows = as_rows(cast(xp, logits, dtype))
    # 3, 1
    drows = xp.exp(rows - residuals.lse)
    # 2
    smoothing, where = residuals.label_smoothing, device(logits)
    if smoothing > 0:
        drows -= smoothing / logits.shape[-1]
    share = xp.full(targets.shape, smoothing - 1, dtype=dtype, device=where)
    ops = engine(xp)
    pattern = ops.pattern(targets[None, ...], logits.shape[-1])
    drows = ops.add_slots(share[None, ...], pattern, drows[None, ...])[0, ...]
    drows *= scale / _number(counts, dtype)
    drows = xp.where(counts, drows, 0.0)
    return xp.reshape(cast(xp, drows, logits.dtype), logits.shape)


def _number(counts: Array, dtype: Any) -> Array:
    """() the number of rows that count, at least 1, found without waiting for a GPU."""
    xp = array_namespace(counts)
    number = xp.sum(xp.astype(counts, xp.int64))
    return xp.astype(xp.where(number == 0, 1, number), dtype)


def _check_targets(logits: Array, targets: Array, ignore_index: int) -> tuple[Array, Array]:
    """(T, 1) targets, 0 where they do not count, and (T, 1) booleans, True where they count."""
    check_integers("targets", targets, "logits", logits)
    ignore_index, xp = check_integer("ignore_index", ignore_index), array_namespace(logits)
    if tuple(targets.shape) != tuple(logits.shape[:-1]):
        raise ValueError(
            f"targets must have the shape of logits without its last axis, "
            f"{tuple(logits.shape[:-1])}, got {tuple(targets.shape)}"
        )
    column = xp.astype(xp.reshape(plain(targets), (math.prod(targets.shape), 1)), xp.int64)
    counts = column != ignore_index
    column = xp.where(counts, column, 0)
    classes = logits.shape[-1]
    if column.shape[0] and not 0 <= int(xp.min(column)) <= int(xp.max(column)) < classes:
        raise ValueError(
            f"targets must lie in 0 .. {classes - 1} or be ignore_index, {ignore_index}, "
            f"got {int(xp.min(column))} .. {int(xp.max(column))}"
        )
    return xp.astype(column, xp.int32), counts
