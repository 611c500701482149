"""Dropout of features, forward and backward: nothing is stored but the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import device

from topk_np._namespace import (
    Array,
    array_namespace,
    cast,
    check_floats,
    check_integer,
    compute_dtype,
    plain,
    put,
)
from topk_np._vjp import output_of
from topk_np.layers.linear import as_rows, check_residuals
from topk_np.options.check import check_dout
from topk_np.options.dropout import Dropout, make_dropout, signed, threefry

DRAWN = 2**14  # random numbers made at once: they fit the cache
LEVELS = 2**16  # a draw has 16 bits: four of them come from one number of the generator


@dataclass(frozen=True, eq=False)
class DropoutResiduals:
    """Residuals of `dropout`: the rate and seed, and the shape and dtype of `x`."""

    shape: tuple[int, ...]
    dtype: Any
    drop: Dropout | None

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return 0


def dropout_fwd(x: Array, /, *, rate: float, seed: int) -> tuple[Array, DropoutResiduals]:
    """
    Dropout that also returns the residuals for its backward pass.

    Parameters, errors and cost are those of `dropout`.

    Returns
    -------
    out : array (..., D)
        The output of `dropout`.
    residuals : DropoutResiduals
        The rate and the seed.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import dropout_fwd
    >>> out, residuals = dropout_fwd(np.ones(8), rate=0.5, seed=3)
    >>> residuals.nbytes
    0
    """
    check_floats({"x": x})
    residuals = DropoutResiduals(tuple(x.shape), x.dtype, make_dropout((rate, seed)))
    return _thin(plain(x), residuals.drop), residuals


@output_of(dropout_fwd)
def dropout() -> Array:
    """
    Dropout: set entries to 0 with probability `rate`, and divide the others by 1 - rate.

    Parameters
    ----------
    x : array (..., D)
        float16, bfloat16, float32 or float64; half precision is computed in float32.
    rate : float
        Probability of dropping an entry, at least 0 and below 1, rounded to a multiple of 2^-16.
    seed : int
        From 0 to 2^64 - 1. Only the seed and the position of an entry decide whether it is dropped:
        give each layer and step a seed of its own, made by `fold_seed`.

    Returns
    -------
    array (..., D)
        In the dtype, library and device of `x`.

    Raises
    ------
    TypeError
        If `x` is not a floating array, `rate` is not a number, or `seed` is not an integer.
    ValueError
        If `rate` or `seed` is out of its range.

    See Also
    --------
    dropout_fwd : also returns the residuals for the backward pass.

    Notes
    -----
    Nothing is stored for the backward pass, which draws the same numbers again: those of the
    counter-based generator Threefry-2x32-20 at (row, column). Memory beyond the output is a block
    of rows. A dropped entry contributes nothing, even if it is NaN. Dropout: Srivastava et al.
    2014; the generator: Salmon et al. 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import dropout
    >>> dropout(np.ones(8), rate=0.5, seed=3)
    array([2., 0., 0., 2., 0., 0., 2., 2.])
    """


def dropout_bwd(residuals: DropoutResiduals, dout: Array, /) -> Array:
    """
    Gradient of `dropout`: the same entries are dropped again.

    Parameters
    ----------
    residuals : DropoutResiduals
        From `dropout_fwd`.
    dout : array (..., D)
        Gradient of the loss with respect to the output, in its shape and dtype.

    Returns
    -------
    array (..., D)
        Gradient of the loss with respect to `x`.

    Raises
    ------
    TypeError
        If `residuals` is not from `dropout_fwd`, or `dout` has another dtype than the output.
    ValueError
        If the shape of `dout` is not the output's.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import dropout_bwd, dropout_fwd
    >>> out, residuals = dropout_fwd(np.ones(8), rate=0.5, seed=3)
    >>> dropout_bwd(residuals, np.ones(8))
    array([2., 0., 0., 2., 0., 0., 2., 2.])
    """
    check_residuals(residuals, DropoutResiduals, "dropout_fwd")
    check_floats({"dout": dout})
    like = array_namespace(dout).empty((), dtype=residuals.dtype, device=device(dout))
    return _thin(check_dout(like, residuals.shape, dout), residuals.drop)


def fold_seed(seed: int, *numbers: int) -> int:
    """
    Make a seed from another seed and numbers, such as those of the step and the layer.

    Parameters
    ----------
    seed : int
        From 0 to 2^64 - 1.
    *numbers : int
        Not negative; taken modulo 2^64.

    Returns
    -------
    int
        From 0 to 2^64 - 1, as good as random: each seed and each sequence of numbers gives another.

    Raises
    ------
    TypeError
        If one of them is not an integer.
    ValueError
        If one of them is negative, or `seed` too large.

    Examples
    --------
    >>> from topk_np.layers import fold_seed
    >>> step, layer = 1000, 3
    >>> fold_seed(7, step, layer) == fold_seed(7, step, layer)
    True
    >>> fold_seed(7, step, layer) == fold_seed(7, layer, step)
    False
    """
    make_dropout((0.0, seed))  # checks it
    for i, number in enumerate(numbers):
        number = check_integer(f"numbers[{i}]", number, least=0)
        halves = np.asarray([seed, seed >> 32, number, number >> 32], object) & 0xFFFFFFFF
        words = halves.astype(np.uint32).view(np.int32)[:, None]
        low, high = threefry((words[0], words[1]), (words[2], words[3]))
        seed = int(low[0]) % 2**32 | int(high[0]) % 2**32 << 32
    return seed


def _thin(x: Array, drop: Dropout | None) -> Array:
    """Drop entries of `x`, and enlarge the others."""
    xp = array_namespace(x)
    if drop is None:
        return xp.asarray(x, copy=True)
    level = min(round(drop.rate * LEVELS), LEVELS - 1)
    enlarge = LEVELS / (LEVELS - level)
    dtype = compute_dtype(xp, x)
    rows = as_rows(x if x.ndim else xp.reshape(x, (1, 1)))
    out = xp.empty(rows.shape, dtype=x.dtype, device=device(x))
    for block, kept in _kept_rows(xp, drop.seed, level, rows):
        piece = cast(xp, rows[block, :], dtype) * enlarge
        out = put(out, (block, slice(None)), cast(xp, xp.where(kept, piece, 0.0), x.dtype))
    return xp.reshape(out, x.shape)


def _kept_rows(xp: Any, seed: int, level: int, rows: Array) -> Iterator[tuple[slice, Array]]:
    """Yield blocks of rows, and the mask of the entries that a draw of 16 bits keeps."""
    count, width = rows.shape
    counters = -(-width // 4)
    where = {"dtype": xp.int32, "device": device(rows)}
    columns = xp.arange(counters, **where)[None, :]
    key = signed(seed), signed(seed >> 32)
    least = (level - LEVELS // 2) * LEVELS  # of the upper half of a word
    size = max(1, DRAWN // max(1, counters))
    for start in range(0, count, size):
        stop = min(start + size, count)
        words = threefry(key, (xp.arange(start, stop, **where)[:, None], columns))
        kept = [half >= least for word in words for half in (word, word << 16)]
        yield slice(start, stop), xp.concat(kept, axis=1)[:, :width]
