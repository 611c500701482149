"""The attention matrix as a sparse array."""

from __future__ import annotations

from typing import Any

from topk_np._namespace import Namespace, check_integer, is_cupy, is_numpy
from topk_np.activations import softmax
from topk_np.attention import TopKAttentionResiduals
from topk_np.options.chunk import Shape


def attention_csr(residuals: TopKAttentionResiduals, /, *, head: tuple[int, ...] = ()) -> Any:
    """
    The attention matrix of one head as a sparse array, for looking at.

    Parameters
    ----------
    residuals : TopKAttentionResiduals
        From `topk_attention_fwd` on NumPy or CuPy arrays.
    head : tuple of int, default ()
        Which head: one index for each of the leading axes.

    Returns
    -------
    scipy.sparse.csr_array or cupyx.scipy.sparse.csr_matrix (Q, N)
        The softmax's weights of the kept keys, before dropout: each row adds up to 1, or is empty.

    Raises
    ------
    TypeError
        If `residuals` is something else, or of another array library; if `head` is not a tuple of
        integers.
    ValueError
        If `head` has not one index for each of the leading axes, or one out of range.

    Notes
    -----
    Memory is a few times what the residuals hold of this head.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_attention_fwd
    >>> from topk_np.diagnostics import attention_csr
    >>> key = np.eye(3)
    >>> _, residuals = topk_attention_fwd(key, key, key, k=1)
    >>> attention_csr(residuals).toarray()
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]])
    """
    if not isinstance(residuals, TopKAttentionResiduals):
        raise TypeError(
            f"residuals must come from topk_attention_fwd, got {type(residuals).__name__}"
        )
    call, batch = residuals.call, residuals.call.batch.lead
    xp = call.xp
    if not (is_numpy(xp) or is_cupy(xp)):
        raise TypeError(f"residuals must be of NumPy or CuPy arrays, got {xp.__name__}")
    check_head(head, batch)
    if len(head) != len(batch):
        raise ValueError(f"head must be a place in the leading axes {batch}, got {head}")

    indices, scores = residuals.indices[head], residuals.scores[head]
    used = indices >= 0
    starts = xp.zeros(call.queries + 1, dtype=xp.int64)
    starts[1:] = xp.cumsum(xp.sum(used, axis=1))
    weights = softmax(scores[None], call.ops)[0]
    return _csr_class(xp)((weights[used], indices[used], starts), shape=(call.queries, call.keys))


def _csr_class(xp: Namespace) -> Any:
    if is_numpy(xp):
        from scipy.sparse import csr_array

        return csr_array
    from cupyx.scipy.sparse import csr_matrix

    return csr_matrix


def check_head(head: Any, batch: Shape) -> None:
    """Check that `head` has indices for some of the first leading axes."""
    if not isinstance(head, tuple):
        raise TypeError(f"head must be a tuple of integers, got {type(head).__name__}")
    places = [check_integer("head's index", place) for place in head]
    in_range = all(-n <= place < n for place, n in zip(places, batch, strict=False))
    if len(head) > len(batch) or not in_range:
        raise ValueError(f"head must be a place in the leading axes {batch}, got {head}")
