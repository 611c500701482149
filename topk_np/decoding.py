"""Keys and values kept between the steps of decoding."""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import device

from topk_np._namespace import (
    Array,
    Namespace,
    check_device,
    check_floats,
    check_integer,
    check_ndim,
    check_same,
    is_numpy,
    namespace_of,
    plain,
    put,
)


class KVCache:
    """
    The keys and values of all positions so far, for decoding a few positions at a time.

    The first `append` decides leading axes, widths, dtype, library and device. Room is made by
    doubling, so that appending costs the same per position however long the cache is.

    Parameters
    ----------
    capacity : int, default 0
        Positions to make room for at the first `append`, if it does not bring more.

    Raises
    ------
    TypeError, ValueError
        If `capacity` is not an integer, or negative.

    Notes
    -----
    Memory is at most twice that of the keys and values (or what `capacity` asks for), three times
    while it grows. JAX's arrays cannot be written to, so that every `append` makes new ones.

    Examples
    --------
    Three positions, then one more that attends to all four:

    >>> import numpy as np
    >>> from topk_np import KVCache, topk_attention
    >>> x = np.random.default_rng(0).standard_normal((4, 2))
    >>> full = topk_attention(x, x, x, k=2, is_causal=True)
    >>> cache = KVCache()
    >>> cache.append(x[:3], x[:3])
    >>> offset = len(cache)
    >>> cache.append(x[3:], x[3:])
    >>> step = topk_attention(
    ...     x[3:], cache.key, cache.value, k=2, is_causal=True, query_offset=offset
    ... )
    >>> np.allclose(step, full[3:])
    True
    """

    def __init__(self, *, capacity: int = 0) -> None:
        self._capacity = check_integer("capacity", capacity, least=0)
        self._length = 0
        self._arrays: tuple[Array, Array] | None = None

    def __len__(self) -> int:
        """Return the number of positions kept."""
        return self._length

    def __repr__(self) -> str:
        """Show length and capacity."""
        return f"KVCache(length={self._length}, capacity={self.capacity})"

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return self._capacity

    @property
    def key(self) -> Array:
        """
        The keys so far (..., N, D), a view, read-only where the library has that.

        It stays valid until positions it shows are truncated and others appended in their place.
        """
        return self._view(0)

    @property
    def value(self) -> Array:
        """The values so far (..., N, V), a view like `key`."""
        return self._view(1)

    def append(self, key: Array, value: Array, /) -> None:
        """
        Put positions after those there are; they are copied.

        Parameters
        ----------
        key : array (..., n, D)
            Keys of the next n positions, float16, bfloat16, float32 or float64.
        value : array (..., n, V)
            Their values. Leading axes may differ from the keys', as in attention.

        Raises
        ------
        TypeError
            If these are not floating arrays of one dtype, library and device, or not those of the
            cache.
        ValueError
            If shapes do not fit together, or not those of the cache.

        Notes
        -----
        On an error the cache is as it was.
        """
        xp = check_floats({"key": key, "value": value})
        check_ndim("key", key, 2, "(..., n, D)")
        check_ndim("value", value, 2, "(..., n, V)")
        check_same("value's second last axis", value.shape[-2], "key's", key.shape[-2])
        if self._arrays is not None:
            for name, new, old in zip(("key", "value"), (key, value), self._arrays, strict=True):
                _check_fits(name, new, old)
        new = plain(key), plain(value)
        start, stop = self._length, self._length + int(key.shape[-2])
        arrays, capacity = self._arrays, self._capacity
        if arrays is None:
            capacity = max(capacity, stop)
            arrays = _room(xp, new[0], capacity), _room(xp, new[1], capacity)
        elif stop > capacity:
            capacity = max(2 * capacity, stop)
            larger = _room(xp, new[0], capacity), _room(xp, new[1], capacity)
            arrays = _put_rows(larger, 0, [array[..., :start, :] for array in arrays])
        arrays = _put_rows(arrays, start, new)
        # Only now does anyone see what was written.
        self._arrays, self._capacity, self._length = arrays, capacity, stop

    def truncate(self, length: int, /) -> None:
        """
        Rewind to the first `length` positions; the room stays.

        Raises
        ------
        TypeError, ValueError
            If `length` is not an integer between 0 and the number of positions kept.
        """
        length = check_integer("length", length, least=0)
        if length > self._length:
            raise ValueError(
                f"length must be at most the number of positions kept, {self._length}, got {length}"
            )
        self._length = length

    def _view(self, which: int) -> Array:
        if self._arrays is None:
            raise ValueError("the cache has no keys or values before the first append")
        view = self._arrays[which][..., : self._length, :]
        if is_numpy(namespace_of({"key": view})):
            view.flags.writeable = False
        return view


def _room(xp: Namespace, like: Array, capacity: int) -> Array:
    """Uninitialised room for `capacity` positions of arrays such as `like` (..., n, D)."""
    *lead, _, width = like.shape
    return xp.empty((*lead, capacity, width), dtype=like.dtype, device=device(like))


def _put_rows(
    arrays: tuple[Array, Array], start: int, rows: Sequence[Array]
) -> tuple[Array, Array]:
    """Keys and values with `rows` of each from row `start` on: see `put`."""
    where = (..., slice(start, start + rows[0].shape[-2]), slice(None))
    return put(arrays[0], where, rows[0]), put(arrays[1], where, rows[1])


def _check_fits(name: str, new: Array, old: Array) -> None:
    """Check that positions of `new` can follow those of `old`."""
    namespace_of({f"the cache's {name}": old, name: new})
    if new.dtype != old.dtype:
        raise TypeError(f"{name} must have the dtype of the cache, {old.dtype}, got {new.dtype}")
    check_device(name, new, "the cache", old)
    got, wanted = tuple(new.shape), tuple(old.shape)
    if (got[:-2], got[-1]) != (wanted[:-2], wanted[-1]):
        shape = ", ".join(map(str, (*wanted[:-2], "n", wanted[-1])))
        raise ValueError(f"{name} must have the shape of the cache, ({shape}), got {got}")
