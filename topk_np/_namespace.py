"""The array library of the inputs, and checks that they may be used together."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any

import array_api_compat
import numpy as np

Array = Any  # an array of any library that follows the array API
Namespace = Any  # that library's functions

LARGEST = float(np.finfo(np.float32).max)  # of a number that every dtype computes with
FLOATS = ("float16", "bfloat16", "float32", "float64")


def array_namespace(*arrays: Array) -> Namespace:
    """
    The array library that all of `arrays` belong to.

    The library is found from the arrays, never imported for the occasion. NumPy 2 follows the
    array API by itself; for other libraries the namespace is array-api-compat's.

    Parameters
    ----------
    *arrays : array
        One or more arrays. ``None`` is skipped, so that optional arguments can be passed on.

    Returns
    -------
    module
        Functions of the array API for these arrays.

    Raises
    ------
    TypeError
        If one of them is not an array (a list, a number, a masked array), they come from
        different libraries, or there is none.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import array_namespace
    >>> array_namespace(np.ones(3)).__name__
    'numpy'
    """
    if len(arrays) == 1 and type(arrays[0]) is np.ndarray:
        return np
    return namespace_of({f"argument {i}": array for i, array in enumerate(arrays)})


def namespace_of(named: Mapping[str, Array]) -> Namespace:
    """Do as `array_namespace`, for arrays with the names that errors should mention."""
    for array in named.values():
        if array is not None and type(array) is not np.ndarray:
            break
    else:
        if any(array is not None for array in named.values()):
            return np
    found = {
        name: _namespace_of_one(name, array) for name, array in named.items() if array is not None
    }
    if not found:
        raise TypeError("expected at least one array, got none")
    (first, wanted), *rest = found.items()
    for name, xp in rest:
        if xp is not wanted:
            raise TypeError(
                f"{name} must come from the array library of {first}, {_library(wanted)}, "
                f"got {_library(xp)}"
            )
    return wanted


def _namespace_of_one(name: str, array: Array) -> Namespace:
    if isinstance(array, np.ndarray):
        if isinstance(array, (np.ma.MaskedArray, np.matrix)):
            raise TypeError(
                f"{name} must be a plain array, got {type(array).__name__}, "
                "whose mask or operators would be ignored"
            )
        return np
    if array_api_compat.is_cupy_array(array) and (problem := why_no_gpu()):
        raise RuntimeError(f"{name} is a CuPy array, but {problem}")
    try:
        if isinstance(array, np.generic):
            raise TypeError  # array-api-compat takes NumPy's scalars for arrays; we do not
        return array_api_compat.array_namespace(array, use_compat=None)
    except TypeError:
        raise TypeError(
            f"{name} must be an array (NumPy, CuPy or another array API library), "
            f"got {_shown(array)}"
        ) from None


def check_floats(named: Mapping[str, Array], optional: Mapping[str, Array] | None = None) -> Any:
    """
    Check that the named arrays share library, device and floating dtype; return the library.

    ``None`` stands for an argument that was not given, where that is `optional`.
    """
    for name, array in named.items():
        if array is None:
            _namespace_of_one(name, array)  # raises
    given = {**named, **{name: a for name, a in (optional or {}).items() if a is not None}}
    xp = namespace_of(given)
    first, array = next(iter(given.items()))
    for name, other in given.items():
        if dtype_name(other) not in FLOATS:
            raise TypeError(
                f"{name} must have dtype {', '.join(FLOATS[:-1])} or {FLOATS[-1]} in native byte "
                f"order, got {other.dtype}"
            )
        if other.dtype != array.dtype:
            raise TypeError(
                f"{name} must have the dtype of {first}, {array.dtype}, got {other.dtype}"
            )
        if xp is not np:
            check_device(name, other, first, array)
    return xp


def check_device(name: str, array: Array, like_name: str, like: Array) -> None:
    """Check that `array` lies on the device of `like`."""
    if isinstance(array, np.ndarray):
        return
    got, wanted = array_api_compat.device(array), array_api_compat.device(like)
    if got != wanted:
        raise TypeError(f"{name} must be on the device of {like_name}, {wanted}, got {got}")


def check_ndim(name: str, array: Array, least: int, shape: str) -> None:
    """Check that `array` has at least `least` axes; `shape` says in the legend's letters which."""
    if array.ndim < least:
        raise ValueError(
            f"{name} must have shape {shape}, at least {least} axes, got {tuple(array.shape)}"
        )


def check_same(name: str, got: int, like: str, wanted: int) -> None:
    """Check that two lengths agree."""
    if got != wanted:
        raise ValueError(f"{name} must be equal to {like}, {wanted}, got {got}")


def check_integer(name: str, value: object, least: int | None = None) -> int:
    """Return `value` as an int; refuse booleans, floats and arrays, and what is below `least`."""
    try:
        if isinstance(value, (bool, np.bool_, np.ndarray)):
            raise TypeError  # operator.index takes these for integers; we do not
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {_shown(value)}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def check_flag(name: str, value: object) -> bool:
    """Return `value` as a bool; refuse anything that is not one."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {_shown(value)}")
    return bool(value)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of the strings in `choices`."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {_listed(choices)}, got {_shown(value)}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {_listed(choices)}, got {value!r}")
    return value


def check_number(name: str, value: object) -> float:
    """Return `value` as a finite float; refuse booleans, strings and arrays."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a real number, got {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= LARGEST:
        raise ValueError(f"{name} must be finite, at most {LARGEST:.1e} in size, got {number}")
    return number


def check_broadcasts(name: str, shape: tuple[int, ...], full: tuple[int, ...], legend: str) -> None:
    """Check that `shape` broadcasts to `full`, which errors call `legend`."""
    fits = len(shape) <= len(full) and all(
        own in (1, whole) for own, whole in zip(shape[::-1], full[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"{name} must broadcast to {legend}, here {full}, got shape {shape}")


def dtype_name(array: Array) -> str:
    """The dtype's name, the same for every library; other byte orders than native keep NumPy's."""
    return _name_of_dtype(array.dtype.__class__, array.dtype)


@cache
def _name_of_dtype(kind: Hashable, dtype: Hashable) -> str:
    # By kind as well, since dtypes of two libraries may hash alike but must not be compared.
    return str(dtype).rpartition(".")[2]  # slow in NumPy


def compute_dtype(xp: Namespace, array: Array) -> Any:
    """The dtype to compute in: float32 for the half-precision formats, else the array's own."""
    return xp.float32 if dtype_name(array) in ("float16", "bfloat16") else array.dtype


def cast(xp: Namespace, array: Array, dtype: Any) -> Array:
    """`array` in `dtype`; the array itself where it has it already."""
    return array if array.dtype == dtype else xp.astype(array, dtype)


def cumulative_sum(xp: Namespace, matrix: Array) -> Array:
    """The running sums of each row of a matrix."""
    return (xp.cumsum if is_numpy(xp) else xp.cumulative_sum)(matrix, axis=-1)  # NumPy 2.0


def put(array: Array, index: Any, values: Array) -> Array:
    """`array`, our own, with `values` at `index`: the same array, or a new one in JAX."""
    if not isinstance(array, np.ndarray) and array_api_compat.is_jax_array(array):
        return array.at[index].set(values)
    array[index] = values
    return array


def zeros(xp: Namespace, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    """An array of zeros on the device of `like`."""
    return xp.zeros(shape, dtype=dtype, device=array_api_compat.device(like))


def add_at(array: Array, index: Any, values: Array) -> Array:
    """Do as `put`, with `values` added."""
    if not isinstance(array, np.ndarray) and array_api_compat.is_jax_array(array):
        return array.at[index].add(values)
    array[index] += values
    return array


def nbytes(array: Array) -> int:
    """Bytes of the elements of an array of 16-, 32- or 64-bit numbers."""
    return int(math.prod(array.shape)) * int(dtype_name(array)[-2:]) // 8


def to_numpy(array: Array) -> np.ndarray:
    """A copy of a small array in NumPy, whatever device it lies on."""
    if isinstance(array, np.ndarray):
        return array.copy()
    if hasattr(array, "get"):  # CuPy refuses to be converted by NumPy
        return np.asarray(array.get())
    flat = array_namespace(array).reshape(array, (-1,))
    number, dtype = (float, np.float64) if dtype_name(array) in FLOATS else (int, np.int64)
    numbers = [number(flat[i]) for i in range(flat.shape[0])]
    return np.asarray(numbers, dtype=dtype).reshape(tuple(array.shape))


def plain(array: Array) -> Array:
    """`array` without a NumPy subclass (memory maps), so that results are plain arrays too."""
    return np.asarray(array) if isinstance(array, np.ndarray) else array


def is_numpy(xp: Namespace) -> bool:
    """Return whether arrays of this namespace are NumPy's."""
    return xp is np


def is_cupy(xp: Namespace) -> bool:
    """Return whether arrays of this namespace are CuPy's."""
    return "cupy" in sys.modules and array_api_compat.is_cupy_namespace(xp)


@cache
def why_no_gpu() -> str | None:
    """Say in one line why CuPy, which is imported, cannot compute; None if it can."""
    cupy: Any = sys.modules["cupy"]
    try:
        if cupy.cuda.runtime.getDeviceCount() > 0:
            return None
        reason = "no device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        reason = " ".join(str(error).split())
    return f"CuPy {cupy.__version__} finds no GPU ({reason}): it needs one, and an NVIDIA driver"


def _library(xp: Namespace) -> str:
    return str(xp.__name__.removeprefix("array_api_compat."))


def _listed(choices: tuple[str, ...]) -> str:
    return ", ".join(map(repr, choices))


def _shown(value: object) -> str:
    """A value as errors show it: its type, and the value itself where it is short."""
    shape = getattr(value, "shape", None)
    if shape is not None and shape != ():
        return f"an array of shape {tuple(shape)}"
    text = repr(value)
    kind = type(value).__name__
    return f"{text} ({kind})" if len(text) <= 40 else kind
