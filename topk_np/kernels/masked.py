"""A dense product in which pairs that are not allowed take no part, whatever they hold."""

from __future__ import annotations

from topk_np._namespace import Array, array_namespace


def masked_matmul(weights: Array, allowed: Array, values: Array) -> Array:
    """
    ``weights @ values`` over the allowed pairs alone.

    `weights` is 0 where `allowed` is False, so this is the plain product, but for rows of values
    with a NaN or inf: these are multiplied one by one, where that is allowed.
    """
    xp = array_namespace(weights)
    if bool(xp.isfinite(xp.sum(values))):  # then all are, and nothing of their size was made
        return weights @ values
    whole = xp.all(xp.isfinite(values), axis=1)
    out = xp.where(whole[None, :], weights, 0.0) @ xp.where(whole[:, None], values, 0.0)
    for row in range(values.shape[0]):
        if not bool(whole[row]):
            out = out + xp.where(
                allowed[:, row, None], weights[:, row, None] * values[None, row, :], 0.0
            )
    return out
