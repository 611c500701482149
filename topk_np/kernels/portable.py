"""
The primitives in plain array API calls: the readable definition that other engines must meet.

Unused slots (see `Selection`) are skipped, never multiplied: 0 x NaN would be NaN.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import device

from topk_np._namespace import Array, array_namespace
from topk_np.kernels import Selection
from topk_np.kernels.finds import Finds as Finds

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of Threefry, as is the next
PARITY = 0x1BD11BDA


def matmul(rows: Array, keys: Array, scratch: Array) -> Array:
    """(C, n): ``rows @ keys.T``; other engines write it to `scratch`."""
    return rows @ keys.T


def hide(scores: Array, allowed: Array) -> Array:
    """(C, n): `scores`, but -inf where `allowed` is False; other engines work in place."""
    xp = array_namespace(scores)
    return xp.where(allowed, scores, -xp.inf)


def hide_outside(scores: Array, first: int, last: int) -> Array:
    """(C, n): `scores`, but -inf where row i is not in ``first + i <= column <= last + i``."""
    xp = array_namespace(scores)
    where = {"dtype": xp.int64, "device": device(scores)}
    diagonal = (
        xp.arange(scores.shape[1], **where)[None, :] - xp.arange(scores.shape[0], **where)[:, None]
    )
    return hide(scores, (diagonal >= first) & (diagonal <= last))


def tanh(scores: Array) -> Array:
    """The hyperbolic tangent of `scores`; other engines work in place."""
    return array_namespace(scores).tanh(scores)


def select(scores: Array, k: int) -> Selection:
    """The k largest of each row: lower index first among equals, NaN above all, -inf never."""
    xp = array_namespace(scores)
    columns = scores.shape[1]
    k = min(k, columns)
    # Two stable sorts, the less important first: by falling value, then NaN before the rest.
    nan = xp.isnan(scores)
    order = xp.argsort(xp.where(nan, 0.0, -scores), axis=1, stable=True)
    after = xp.astype(xp.take_along_axis(~nan, order, axis=1), xp.int32)
    best = xp.take_along_axis(order, xp.argsort(after, axis=1, stable=True), axis=1)[:, :k]

    taken = xp.take_along_axis(scores, best, axis=1) != -xp.inf
    best = xp.sort(xp.where(taken, best, columns), axis=1)
    used = best < columns
    values = xp.take_along_axis(scores, xp.where(used, best, 0), axis=1) if columns else scores
    return Selection(
        xp.where(used, values, -xp.inf),
        xp.astype(xp.where(used, best, -1), xp.int32),
        xp.sum(xp.astype(used, xp.int32), axis=1, dtype=xp.int32),
    )


def select_above(scores: Array, k: int, floor: Array) -> Selection:
    """The k largest of each row among what exceeds its `floor` (C,); a NaN always does."""
    xp = array_namespace(scores)
    return select(xp.where(scores <= floor[:, None], -xp.inf, scores), k)


def floor_of(scores: Array, k: int) -> Array:
    """(C,): a value that k entries of each row exceed, where so many are above -inf; or -inf."""
    xp = array_namespace(scores)
    return xp.full(scores.shape[:1], -xp.inf, dtype=scores.dtype, device=device(scores))


def take_slots(matrix: Array, indices: Array) -> Array:
    """(C, K): ``matrix[i, indices[i, j]]``, 0 in unused slots."""
    xp = array_namespace(matrix)
    if matrix.shape[1] == 0:
        return xp.zeros(indices.shape, dtype=matrix.dtype, device=device(matrix))
    used = indices >= 0
    safe = xp.astype(xp.where(used, indices, 0), xp.int64)
    taken = xp.take_along_axis(matrix, safe, axis=1)
    return xp.where(used, taken, xp.zeros_like(taken))


def gather_matmul(weights: Array, indices: Array, counts: Array, values: Array) -> Array:
    """(C, V): the sum over the used slots of ``weights[i, j] * values[indices[i, j]]``."""
    xp = array_namespace(weights)
    used, gathered = _gather(indices, counts, values)
    return xp.sum(xp.where(used[..., None], weights[..., None] * gathered, 0.0), axis=1)


def sampled_matmul(rows: Array, values: Array, indices: Array, counts: Array) -> Array:
    """(C, K): ``rows[i] . values[indices[i, j]]`` in the used slots, 0 in the others."""
    xp = array_namespace(rows)
    used, gathered = _gather(indices, counts, values)
    return xp.where(used, xp.sum(rows[:, None, :] * gathered, axis=2), 0.0)


def scatter_matmul(
    weights: Array, indices: Array, counts: Array, rows: Array, out: Array, first: int = 0
) -> Array:
    """
    `out` with ``weights[i, j] * rows[i]`` added to its row ``indices[i, j] - first``.

    Indices outside of `out` are left out, so that several calls can share the work.
    """
    dense, hit = _dense(weights, indices, counts, first, first + out.shape[0])
    return out + masked_matmul(dense.T, hit.T, rows)


def add_slots(weights: Array, indices: Array, counts: Array, out: Array) -> Array:
    """`out` (C, N), to which ``weights[i, j]`` is added at ``[i, indices[i, j]]``."""
    dense, _ = _dense(weights, indices, counts, 0, out.shape[1])
    return out + dense


def _dense(
    weights: Array, indices: Array, counts: Array, first: int, last: int
) -> tuple[Array, Array]:
    """The columns from `first` to `last` of a row-sparse matrix, and where it has a slot."""
    xp = array_namespace(weights)
    columns = xp.arange(first, last, dtype=xp.int32, device=device(indices))[None, :]
    used = _used(indices, counts)
    hit = xp.zeros((indices.shape[0], last - first), dtype=xp.bool, device=device(indices))
    dense = xp.zeros(hit.shape, dtype=weights.dtype, device=device(indices))
    for slot in range(indices.shape[1]):
        here = used[:, slot, None] & (indices[:, slot, None] == columns)
        hit = hit | here
        dense = xp.where(here, weights[:, slot, None], dense)
    return dense, hit


def masked_matmul(weights: Array, allowed: Array, values: Array) -> Array:
    """
    ``weights @ values`` over the allowed pairs alone.

    `weights` is 0 where `allowed` is False, so this is the plain product, but for rows of values
    with a NaN or inf: these are multiplied one by one, where that is allowed.
    """
    xp = array_namespace(weights)
    out = weights @ values
    if bool(xp.isfinite(xp.sum(out))):  # then no such row took part, not even times 0
        return out
    whole = xp.all(xp.isfinite(values), axis=1)
    if bool(xp.all(whole)):
        return out
    out = xp.where(whole[None, :], weights, 0.0) @ xp.where(whole[:, None], values, 0.0)
    for row in range(values.shape[0]):
        if not bool(whole[row]):
            out = out + xp.where(
                allowed[:, row, None], weights[:, row, None] * values[None, row, :], 0.0
            )
    return out


def softmax(scores: Array) -> Array:
    """Row-wise softmax; a row without allowed scores is all 0."""
    xp = array_namespace(scores)
    if scores.shape[1] == 0:
        return scores
    largest = xp.max(scores, axis=1, keepdims=True)
    weights = xp.exp(scores - xp.where(largest == -xp.inf, 0.0, largest))
    total = xp.sum(weights, axis=1, keepdims=True)
    return weights / xp.where(total == 0, 1.0, total)


def softmax_vjp(weights: Array, dweights: Array) -> Array:
    """``weights * (dweights - sum(weights * dweights))``, row by row."""
    xp = array_namespace(weights)
    return weights * (dweights - xp.sum(weights * dweights, axis=1, keepdims=True))


def threefry(key: tuple[Any, Any], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Threefry-2x32-20: two int32 of random bits for each key and counter, which broadcast."""
    x, y = counter
    keys = (*key, key[0] ^ key[1] ^ PARITY)
    x, y = x + keys[0], y + keys[1]
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x = x + y
            # The shift to the right repeats the sign, which the mask takes away again.
            y = (y << rotation) | ((y >> (32 - rotation)) & ((1 << rotation) - 1))
            y = x ^ y
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + (block + 1)
    return x, y


def _used(indices: Array, counts: Array) -> Array:
    xp = array_namespace(indices)
    slots = xp.arange(indices.shape[1], dtype=xp.int32, device=device(indices))
    return slots[None, :] < counts[:, None]


def _gather(indices: Array, counts: Array, values: Array) -> tuple[Array, Array]:
    """Which slots are used, and (C, K, V) rows of `values`, arbitrary where a slot is not."""
    xp = array_namespace(indices)
    used = _used(indices, counts)
    shape = (*indices.shape, values.shape[1])
    if values.shape[0] == 0:
        return used, xp.zeros(shape, dtype=values.dtype, device=device(values))
    flat = xp.reshape(xp.where(used, indices, 0), (-1,))
    return used, xp.reshape(xp.take(values, flat, axis=0), shape)
