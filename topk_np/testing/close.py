"""Equality up to rounding, with a tolerance that is derived and not guessed."""

from __future__ import annotations

import numpy as np
from array_api_compat import device

from topk_np._namespace import Array, array_namespace, cast, dtype_name, to_numpy

EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
"""From 1 to the next number of each dtype: twice what rounding errs by."""


def assert_close(
    actual: Array, expected: Array, /, *, length: int = 1, size: float | None = None
) -> None:
    """
    Assert that two arrays are the same up to rounding.

    They must come from one array library, lie on one device, and agree in dtype and shape; NaN and
    infinities must be in the same places. Numbers may differ by ``(length + 1) * eps * size``.

    Parameters
    ----------
    actual : array
        What was computed, float16, bfloat16, float32 or float64.
    expected : array
        What it should be.
    length : int, default 1
        How many roundings lie in a row on the way to a number: of an inner product, how many
        terms it has.
    size : float, optional
        The sum of the absolute values of what is added up, by default the largest finite expected
        number in size. It has to be given where terms may cancel.

    Raises
    ------
    AssertionError
        If they differ. The message says in what; for numbers also by how much, how much is
        allowed, and where the largest difference is.
    TypeError
        If one of them is not a floating array.

    Notes
    -----
    A sum of n rounded products, in whatever order, errs by at most ``n u / (1 - n u)`` times the
    sum of their absolute values, where u = eps / 2 (Higham, *Accuracy and Stability of Numerical
    Algorithms*, 2002, section 3.1). Both sides may err as much, which makes ``n eps``; the 1 is
    for storing the two.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.testing import assert_close
    >>> assert_close(np.array([0.1 + 0.2]), np.array([0.3]))
    >>> assert_close(np.array([1.0, 2.5]), np.array([1.0, 2.0]))
    Traceback (most recent call last):
    ...
    AssertionError: differs by 5.0e-01 at (1,), where 8.9e-16 is allowed: got 2.5, expected 2.0
    """
    own, other = (array_namespace(array) for array in (actual, expected))
    _assert_same("library", own.__name__, other.__name__)
    _assert_same("dtype", dtype_name(actual), dtype_name(expected))
    if not isinstance(actual, np.ndarray):
        _assert_same("device", str(device(actual)), str(device(expected)))
    _assert_same("shape", tuple(actual.shape), tuple(expected.shape))
    if dtype_name(actual) not in EPSILON:
        raise TypeError(f"actual must have a floating dtype, got {actual.dtype}")
    eps = EPSILON[dtype_name(actual)]
    wide, wanted = (to_numpy(cast(own, array, own.float64)) for array in (actual, expected))
    if size is None:
        size = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0))
    assert_near(wide, wanted, (length + 1) * eps * size)


def assert_near(actual: np.ndarray, expected: np.ndarray, tolerance: np.ndarray | float) -> None:
    """Assert that float64 arrays of one shape differ by no more; not finite only where equal."""
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(actual - expected))
    difference = np.where(np.isnan(difference), np.inf, difference)
    excess = difference - tolerance
    if not np.any(excess > 0):
        return
    place = tuple(int(i) for i in np.unravel_index(np.argmax(excess), excess.shape))
    allowed = float(np.broadcast_to(tolerance, excess.shape)[place])
    raise AssertionError(
        f"differs by {difference[place]:.1e} at {place}, where {allowed:.1e} is allowed: "
        f"got {actual[place]}, expected {expected[place]}"
    )


def _assert_same(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise AssertionError(f"{what} is {got}, expected {expected}")
