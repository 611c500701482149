"""CuPy's sorts by NumPy, on device memory, which is host memory here.  Stable; NaN last, as CuPy sorts."""

import ctypes

import numpy as np

available = True


def get_build_version():
    return 0


def _view(address, shape, dtype):
    dtype = np.dtype(dtype)
    # CuPy sorts these kinds and refuses others in these words. NumPy would sort more of them, and a
    # test would pass here that fails on a GPU.
    if dtype.char not in "bBhHiIlLqQefdFD?":
        raise NotImplementedError(f"Sorting arrays with dtype '{dtype}' is not supported")
    size = int(np.prod(shape, dtype=np.intp))
    return np.frombuffer(
        (ctypes.c_char * (size * dtype.itemsize)).from_address(address), dtype=dtype
    ).reshape(tuple(shape))


def sort(dtype, data, keys, shape):
    a = _view(data, shape, dtype)
    a[...] = np.sort(a, axis=-1, kind="stable")


def argsort(dtype, index, data, keys, shape):
    a = _view(data, shape, dtype)
    _view(index, shape, np.intp)[...] = np.argsort(a, axis=-1, kind="stable")


def lexsort(dtype, index, keys, k, n):
    _view(index, (n,), np.intp)[...] = np.lexsort(_view(keys, (k, n), dtype))
