"""Embedding of tokens as rows of a table, forward and backward."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from array_api_compat import device

from topk_np._namespace import (
    Array,
    Namespace,
    array_namespace,
    cast,
    check_floats,
    compute_dtype,
    plain,
)
from topk_np._vjp import output_of
from topk_np.kernels import engine
from topk_np.layers.linear import as_rows, check_integers, check_residuals
from topk_np.options.check import check_dout

SCATTERED = 2**22  # entries of a matrix (tokens, T), which some engines make to add up rows


@dataclass(frozen=True, eq=False)
class EmbeddingResiduals:
    """Residuals of `embedding`: its inputs."""

    tokens: Array = field(repr=False)
    table: Array = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return 0


def embedding_fwd(tokens: Array, table: Array, /) -> tuple[Array, EmbeddingResiduals]:
    """
    Embedding that also returns the residuals for its backward pass.

    Parameters, errors and cost are those of `embedding`.

    Returns
    -------
    out : array (..., D)
        The output of `embedding`.
    residuals : EmbeddingResiduals
        References to the inputs.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import embedding_fwd
    >>> out, residuals = embedding_fwd(np.array(1), np.eye(2))
    >>> out, residuals.nbytes
    (array([0., 1.]), 0)
    """
    xp = check_floats({"table": table})
    if table.ndim != 2:
        raise ValueError(f"table must have shape (T, D), got {tuple(table.shape)}")
    check_integers("tokens", tokens, "table", table)
    _check_range(xp, tokens, table.shape[0])
    tokens, table = plain(tokens), plain(table)
    flat = xp.astype(xp.reshape(tokens, (math.prod(tokens.shape),)), xp.int64)
    rows = xp.take(table, flat, axis=0)
    out = xp.reshape(rows, (*tokens.shape, table.shape[1]))
    return out, EmbeddingResiduals(tokens, table)


@output_of(embedding_fwd)
def embedding() -> Array:
    """
    Embedding: the row of a table for each token.

    Parameters
    ----------
    tokens : integer array (...)
        From 0 to T - 1.
    table : array (T, D)
        A row for each of T tokens, in float16, bfloat16, float32 or float64.

    Returns
    -------
    array (..., D)
        In the dtype, library and device of `table`.

    Raises
    ------
    TypeError
        If `tokens` are not integers, `table` is not a floating array, or they differ in library or
        device.
    ValueError
        If `table` is not a matrix, or a token is not in it.

    See Also
    --------
    embedding_fwd : also returns the residuals for the backward pass.

    Notes
    -----
    Positions are tokens too: ``x + embedding(positions, position_table)``.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import embedding
    >>> embedding(np.array([2, 0]), np.array([[1.0], [2.0], [3.0]]))
    array([[3.],
           [1.]])
    """


def embedding_bwd(residuals: EmbeddingResiduals, dout: Array, /) -> Array:
    """
    Gradient of `embedding` with respect to the table.

    The gradient of a row is the sum over all places where the row was taken.

    Parameters
    ----------
    residuals : EmbeddingResiduals
        From `embedding_fwd`.
    dout : array (..., D)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    array (T, D)
        In the dtype of the table.

    Raises
    ------
    TypeError
        If `residuals` is not from `embedding_fwd`, or `dout` has another library, device or dtype
        than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Notes
    -----
    Rows are added up in the order of the tokens, so results are the same in every run.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import embedding_bwd, embedding_fwd
    >>> out, residuals = embedding_fwd(np.array([1, 1]), np.eye(2))
    >>> embedding_bwd(residuals, np.ones_like(out))
    array([[0., 0.],
           [2., 2.]])
    """
    check_residuals(residuals, EmbeddingResiduals, "embedding_fwd")
    tokens, table = residuals.tokens, residuals.table
    dout = check_dout(table, (*tokens.shape, table.shape[1]), dout)
    xp = array_namespace(table)
    dtype, where = compute_dtype(xp, table), device(table)
    drows = as_rows(cast(xp, dout, dtype))
    indices = xp.astype(xp.reshape(tokens, (drows.shape[0], 1)), xp.int32)
    ops, dtable = engine(xp), xp.zeros((1, *table.shape), dtype=dtype, device=where)
    # The table's gradient is a matrix with a single 1 in each row, transposed, times `drows`.
    size = max(1, SCATTERED // max(1, table.shape[0]))
    for start in range(0, drows.shape[0], size):
        rows = slice(start, min(start + size, drows.shape[0]))
        index, drow = indices[rows, :], drows[rows, :]
        weights = xp.ones(index.shape, dtype=dtype, device=where)
        pattern = ops.pattern(index[None, ...], table.shape[0])
        dtable = ops.scatter_matmul(weights[None, ...], pattern, drow[None, ...], dtable)
    return cast(xp, dtable[0, ...], table.dtype)


def _check_range(xp: Namespace, tokens: Array, size: int) -> None:
    """Check that `tokens` lie in a table of that size."""
    if 0 in tokens.shape:
        return
    least, most = int(xp.min(tokens)), int(xp.max(tokens))
    if least < 0 or most >= size:
        raise ValueError(f"tokens must lie in 0 .. {size - 1}, got {least} .. {most}")
