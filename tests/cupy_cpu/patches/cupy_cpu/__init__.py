"""Controls of the CPU build of CuPy.  Importing this module tells the real CuPy from this one."""

import contextlib
import ctypes
import os

import numpy as np

_here = os.path.dirname(os.path.abspath(__file__))
library = os.path.join(_here, "libcupy_cpu.so")
include_dir = os.path.join(_here, "include")
_lib = ctypes.CDLL(library)
_lib.cupy_cpu_argument.argtypes = (ctypes.c_void_p, ctypes.c_uint)
_lib.cupy_cpu_name.argtypes = (ctypes.c_void_p,)
_lib.cupy_cpu_name.restype = ctypes.c_char_p
_signatures = {}
_POINTER, _FLOAT, _INTEGER, _STRUCT = 1, 2, 3, 4
_NAMES = {
    _POINTER: "a pointer",
    _FLOAT: "a floating number",
    _INTEGER: "an integer",
    _STRUCT: "a structure",
}


@contextlib.contextmanager
def thread_order(order):
    """Run kernels with their threads and blocks in another order: 0 ascending, 1 descending, n > 1 shuffled by n.

    Results may not depend on it.  A kernel that lacks a barrier usually answers differently under some order.
    """
    before = _lib.cupy_cpu_order(ctypes.c_uint(order))
    try:
        yield
    finally:
        _lib.cupy_cpu_order(ctypes.c_uint(before))


def launches():
    """Kernels launched so far in this process."""
    return _lib.cupy_cpu_launches()


def check_arguments(function, args, array_type):
    """Refuse a launch whose arguments are not what the kernel takes.

    The driver copies as many bytes as the kernel declares from wherever an argument lies, so on a GPU a wrong count or
    type is garbage, not an error.  A wider integer is let through if its value fits.
    """
    signature = _signatures.get(function)
    if signature is None:
        count = _lib.cupy_cpu_argument(function, 0xFFFFFFFF)
        codes = [_lib.cupy_cpu_argument(function, i) for i in range(count)]
        signature = _signatures[function] = tuple((c >> 16, c & 0xFFFF) for c in codes)

    def wrong(problem):
        return TypeError(f"{_lib.cupy_cpu_name(function).decode()}: {problem}")

    if len(args) != len(signature):
        raise wrong(f"the kernel takes {len(signature)} arguments, {len(args)} were given")
    for i, (a, (kind, size)) in enumerate(zip(args, signature, strict=True)):
        if isinstance(a, array_type):
            if kind in (_FLOAT, _INTEGER):
                raise wrong(
                    f"argument {i} is an array, the kernel takes {_NAMES[kind]} of {size} bytes"
                )
            continue
        if not isinstance(a, (np.generic, int, float)) or kind == _STRUCT:
            continue
        dtype = a.dtype if isinstance(a, np.generic) else np.dtype(type(a))
        if kind == _POINTER:
            if dtype.kind not in "iu" or dtype.itemsize != size:
                raise wrong(f"argument {i} is {dtype}, the kernel takes a pointer")
        elif kind == _FLOAT:
            if dtype.kind != "f" or dtype.itemsize != size:
                raise wrong(
                    f"argument {i} is {dtype}, the kernel takes a floating number of {size} bytes"
                )
        elif dtype.kind not in "iub" or dtype.itemsize < size:
            raise wrong(f"argument {i} is {dtype}, the kernel takes an integer of {size} bytes")
        elif dtype.itemsize > size and not -(1 << (8 * size - 1)) <= int(a) < 1 << (8 * size):
            raise wrong(
                f"argument {i} is {a}, which does not fit the kernel's integer of {size} bytes"
            )


def unsupported(what):
    """
    The error of everything this build lacks.

    CUDA's libraries, nvcc and jitify cannot run without a GPU or NVIDIA's tools. An error is better
    than a stub that returns, after which a test would pass on numbers that nobody computed.
    """
    return NotImplementedError(f"{what} is not implemented in the CPU build of CuPy")
