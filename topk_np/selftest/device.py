"""The array library under test, and the device that its arrays lie on."""

from __future__ import annotations

import importlib
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from topk_np import __version__
from topk_np._gpu import why_no_gpu
from topk_np._namespace import Array, array_namespace
from topk_np._process import UserError

BACKENDS = ("cupy", "numpy")
CPU_BUILD = "the CPU build of CuPy: kernels run on the CPU, and times say nothing about a GPU"


@dataclass(frozen=True)
class Device:
    """One array library on one device."""

    name: str
    xp: Any
    facts: dict[str, Any]
    """Its name and versions, for the report."""
    asarray: Callable[[np.ndarray], Array] = np.asarray
    to_numpy: Callable[[Array], np.ndarray] = np.asarray
    finish: Callable[[], object] = lambda: None
    """Wait until everything that was started is done."""
    stay: Callable[[], AbstractContextManager[object]] = nullcontext
    """In this context a copy to the host raises an error."""
    note: str = ""
    """What should be known before the results are believed."""
    fast: bool = False
    """Whether problems of real size are quick."""

    def namespace(self) -> Any:
        """The library as the package sees it."""
        return array_namespace(self.asarray(np.ones(1)))


def find_device(backend: str) -> Device:
    """
    The device of a backend, "cupy" or "numpy".

    Raises
    ------
    UserError
        If CuPy is not installed, cannot be imported or sees no GPU.
    """
    if backend == "cupy":
        return _cupy()
    return Device("NumPy", np, {**_versions(np), "device": platform.machine()})


def _cupy() -> Device:
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        if error.name == "cupy":
            raise UserError(
                "the package cupy is missing: pip install 'topk_np[cupy13]' for CUDA 13, "
                "'topk_np[cupy12]' for CUDA 12"
            ) from error
        cause = error.__cause__ or error  # CuPy wraps it in a page of advice
        raise UserError(f"CuPy cannot be imported: {' '.join(str(cause).split())}") from error
    if problem := why_no_gpu():
        raise UserError(problem)
    on_cpu = cupy.__version__.endswith("+cpu")
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    return Device(
        "CuPy",
        cupy,
        {
            **_versions(cupy),
            "device": properties["name"].decode(),
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "memory_gib": round(properties["totalGlobalMem"] / 2**30, 1),
            "cuda_driver": runtime.driverGetVersion(),
            "cuda_runtime": runtime.runtimeGetVersion(),
        },
        asarray=cupy.asarray,
        to_numpy=cupy.asnumpy,
        finish=lambda: cupy.cuda.get_current_stream().synchronize(),
        stay=_without_copies_to_the_host,
        note=CPU_BUILD if on_cpu else "",
        fast=not on_cpu,
    )


@contextmanager
def _without_copies_to_the_host() -> Iterator[None]:
    cupyx = importlib.import_module("cupyx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this will go, as it does not notice every copy
        with cupyx.allow_synchronize(False):
            yield


def _versions(xp: Any) -> dict[str, str]:
    return {
        "topk_np": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        xp.__name__: xp.__version__,
    }
