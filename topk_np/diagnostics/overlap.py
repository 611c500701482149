"""The share of the keys of one selection that another keeps too."""

from __future__ import annotations

import math

import numpy as np
from array_api_compat import device

from topk_np._namespace import (
    Array,
    Namespace,
    check_device,
    check_ndim,
    dtype_name,
    namespace_of,
    plain,
)
from topk_np.schedule.plan import slices

CHUNK = 2**17  # indices that are compared at once


def recall(indices: Array, reference: Array, /) -> Array:
    """
    The share of the keys that `reference` keeps for each query which `indices` keeps too.

    Compares an approximate top-k, that of another kernel or dtype, or another k, with the exact
    one: with ``residuals.indices`` of `topk_attention_fwd`, or ``top_k(scores, k).indices``. The
    arguments swapped, it is the precision.

    Parameters
    ----------
    indices : integer array (..., K)
        The keys that are kept, in any order; any negative number is an unused slot. A key that is
        there more than once counts once.
    reference : integer array (..., R)
        The keys that should be kept, likewise. Leading axes broadcast; integer dtypes may differ.

    Returns
    -------
    array (...)
        From 0 to 1, in the library's default floating dtype. 1 where `reference` keeps nothing,
        since nothing is missed: all are 1 exactly where each reference key is kept.

    Raises
    ------
    TypeError
        If they are not integer arrays of one library and device.
    ValueError
        If one has no axis, or the leading axes do not broadcast.

    Notes
    -----
    Time is that of sorting K + R integers for each query; memory beyond the two arrays and the
    output is a few MiB, unless leading axes are broadcast.

    Where scores are equal, two exact selections may differ; ours takes the lower index. Where they
    are nearly so, rounding decides. Neither does attention much harm: look at `kept_mass` as well.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.diagnostics import recall
    >>> exact = np.array([[0, 2, 5, 7], [1, 3, -1, -1], [-1, -1, -1, -1]])
    >>> recall(np.array([[7, 5, 4, 2], [3, 8, 9, 3], [0, 1, 2, 3]]), exact)
    array([0.75, 0.5 , 1.  ])
    """
    xp = namespace_of({"indices": indices, "reference": reference})
    for name, array in (("indices", indices), ("reference", reference)):
        if "int" not in dtype_name(array):
            raise TypeError(f"{name} must be an integer array, got dtype {array.dtype}")
        check_ndim(name, array, 1, "(..., K)")
    check_device("reference", reference, "indices", indices)
    leads = [tuple(array.shape[:-1]) for array in (indices, reference)]
    try:
        lead = np.broadcast_shapes(*leads)
    except ValueError:
        raise ValueError(
            "the leading axes of indices and reference must broadcast, "
            f"got {leads[0]} and {leads[1]}"
        ) from None

    rows, pair = math.prod(lead), (plain(indices), plain(reference))
    found, wanted = (_matrix(xp, array, lead) for array in pair)
    size = max(1, CHUNK // (1 + found.shape[1] + wanted.shape[1]))
    shares = [_shares(xp, found[some, :], wanted[some, :]) for some in slices(rows, size)]
    return xp.reshape(xp.concat(shares or [_shares(xp, found, wanted)], axis=0), lead)


def _matrix(xp: Namespace, array: Array, lead: tuple[int, ...]) -> Array:
    """`array` (..., K) with its leading axes broadcast to `lead` and made one."""
    slots = array.shape[-1]
    return xp.reshape(xp.broadcast_to(array, (*lead, slots)), (math.prod(lead), slots))


def _shares(xp: Namespace, found: Array, wanted: Array) -> Array:
    """(C,): the share of the `wanted` keys (C, R) that are among the `found` ones (C, K)."""
    found, wanted = xp.astype(found, xp.int64), xp.astype(wanted, xp.int64)
    # Key j is the number 2 j where found, 2 j + 1 where wanted, so that these are neighbours.
    found = xp.where(found < 0, -2, 2 * found)
    wanted = xp.where(wanted < 0, -2, 2 * wanted + 1)
    start = xp.full((found.shape[0], 1), -2, dtype=xp.int64, device=device(found))
    codes = xp.sort(xp.concat([start, found, wanted], axis=1), axis=1)
    before, codes = codes[:, :-1], codes[:, 1:]
    first = (codes % 2 == 1) & (codes != before)  # each wanted key once
    number = xp.asarray(0.0).dtype
    total = xp.sum(xp.astype(first, number), axis=1)
    hits = xp.sum(xp.astype(first & (codes == before + 1), number), axis=1)
    return xp.where(total == 0, 1.0, hits / xp.where(total == 0, 1.0, total))
