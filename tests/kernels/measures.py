"""What CuPy does for a function: kernels launched, memory held, copies to the host."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

Result = TypeVar("Result")


def usable_cupy() -> Any:
    """
    CuPy, or skip where it is not installed or finds no GPU.

    Tests that need it run on a GPU, and by `make test-cupy-cpu`, which `.ci/run` calls, on CuPy's
    CPU build. The stock CuPy without a GPU cannot make an array.
    """
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed: see tests/cupy_cpu")
    if not cupy.is_available():
        pytest.skip("CuPy finds no GPU: see tests/cupy_cpu", allow_module_level=True)
    return cupy


def launches(function: Callable[[], Any]) -> int:
    """Kernels that a function launches, once those it needs are compiled; cuBLAS's not counted."""
    build = pytest.importorskip("cupy_cpu", reason="only CuPy's CPU build counts launches")
    function()
    before = build.launches()
    function()
    return int(build.launches() - before)


def measured(function: Callable[[], Result]) -> tuple[Result, int]:
    """What a function returns, and the bytes that CuPy held at most for it meanwhile."""
    cuda = importlib.import_module("cupy").cuda
    sizes: dict[int, int] = {}
    peak = 0

    class Held(cuda.MemoryHook):  # type: ignore[misc, name-defined]
        """Bytes that a memory pool has handed out."""

        name = "held"

        def malloc_postprocess(self, **what: Any) -> None:
            nonlocal peak
            sizes[what["pmem_id"]] = what["size"]
            peak = max(peak, sum(sizes.values()))

        def free_postprocess(self, **what: Any) -> None:
            sizes.pop(what["pmem_id"], None)  # what was there before is none of ours

    function()  # compiles kernels
    with cuda.using_allocator(cuda.MemoryPool().malloc), Held():
        return function(), peak


@contextmanager
def no_copies_to_the_host() -> Iterator[None]:
    """Make a copy to the host an error."""
    cupyx = importlib.import_module("cupyx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this will go, as it does not notice every copy
        with cupyx.allow_synchronize(False):
            yield
