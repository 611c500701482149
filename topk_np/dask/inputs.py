"""The arguments of the functions over Dask arrays, checked and chunked alike."""

from __future__ import annotations

import math
from typing import Any

import dask.array as da
import numpy as np


def check_inputs(*arrays: Any) -> None:
    """Check query, key and value as far as `topk_np.options.check.attention_call` does not."""
    for name, array in zip(("query", "key", "value"), arrays, strict=True):
        check_array(name, array)
    query, key, value = arrays
    for name, array in (("key", key), ("value", value)):
        if array.shape[:-2] != query.shape[:-2]:
            raise ValueError(
                f"{name} must have the leading axes of query, {query.shape[:-2]}, "
                f"got {array.shape[:-2]}; nothing is broadcast here"
            )


def chunked_alike(
    query: da.Array, key: da.Array, value: da.Array
) -> tuple[da.Array, da.Array, da.Array]:
    """The inputs with the same chunks along the axes that they share, whole along the last."""
    lead = query.chunks[:-2]
    return (
        query.rechunk((*query.chunks[:-1], -1)),
        key.rechunk((*lead, key.chunks[-2], -1)),
        value.rechunk((*lead, key.chunks[-2], -1)),
    )


def check_array(name: str, array: Any) -> None:
    """Check that it is a Dask array of at least two axes and a known shape."""
    if not isinstance(array, da.Array):
        raise TypeError(f"{name} must be a Dask array, got {type(array).__name__}")
    if array.ndim < 2:
        raise ValueError(f"{name} must have at least 2 axes, got shape {array.shape}")
    if any(math.isnan(size) for size in array.shape):
        raise ValueError(f"{name} must have a known shape, got {array.shape}")


def check_mask(mask: Any) -> da.Array:
    """The mask as a Dask array."""
    if not isinstance(mask, (da.Array, np.ndarray)):
        raise TypeError(f"mask must be a Dask or NumPy array, got {type(mask).__name__}")
    return da.asarray(mask)


def stand_in(array: da.Array) -> Any:
    """An array of the same shape and dtype that takes no memory, to check options against."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)


def blocks_of_pairs(mask: da.Array, query: da.Array, key: da.Array) -> Any:
    """The mask in blocks of queries and keys, over the leading axes and these two."""
    whole = da.broadcast_to(mask, (*query.shape[:-1], key.shape[-2]))
    return whole.rechunk((*query.chunks[:-1], key.chunks[-2])).to_delayed()
