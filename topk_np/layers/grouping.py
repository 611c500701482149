"""Options over heads (..., H, Q, N) as options over groups of heads (..., G, H/G, Q, N)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from topk_np._namespace import Array, array_namespace
from topk_np.options.relative import ALiBi, T5Bias

NO_HEADS = ("query_offset", "query_lengths", "key_lengths")  # one number for all heads of a batch


def group_options(options: dict[str, Any], heads: int, groups: int) -> dict[str, Any]:
    """The options of an attention call, from those of multi-head attention."""
    if options.get("return_lse", False) is not False:
        raise TypeError(
            "return_lse is not an option of multi-head attention, which mixes the heads"
        )
    unset = {"p": None, "max_k": None, "return_lse": False}
    grouped = {
        name: given for name, given in options.items() if given is not unset.get(name, unset)
    }
    for name in ("mask", "bias"):
        given = grouped.get(name)
        if isinstance(given, ALiBi):
            if getattr(given.slopes, "ndim", 0) > 0:
                grouped[name] = ALiBi(_split("bias.slopes", given.slopes, -1, heads, groups))
        elif isinstance(given, T5Bias):
            table = given.table
            if getattr(table, "ndim", 0) > 1:
                table = _split("bias.table", table, -1, heads, groups)
            grouped[name] = replace(given, table=table)
        elif getattr(given, "ndim", 0) > 2:
            grouped[name] = _split(name, given, -3, heads, groups)
    for name in NO_HEADS:
        if getattr(grouped.get(name), "shape", ()) != ():
            grouped[name] = grouped[name][..., None, None]
    return grouped


def bias_shape(options: dict[str, Any]) -> tuple[int, ...]:
    """The shape in which the caller wants the gradient of the bias."""
    bias = options.get("bias")
    return tuple(getattr(bias.table if isinstance(bias, T5Bias) else bias, "shape", ()))


def _split(name: str, array: Array, axis: int, heads: int, groups: int) -> Array:
    """`array` with an axis of so many heads, or 1, cut into groups and the heads of a group."""
    xp, shape = array_namespace(array), tuple(array.shape)
    place = len(shape) + axis
    if place < 0 or shape[place] not in (1, heads):
        raise ValueError(f"{name} must have an axis of the {heads} heads, got shape {shape}")
    own = (1, 1) if shape[place] == 1 else (groups, heads // groups)
    return xp.reshape(array, (*shape[:place], *own, *shape[place + 1 :]))
