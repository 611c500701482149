"""The array library under test, the device that its arrays lie on, and the time it takes."""

from __future__ import annotations

import importlib
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

import topk_np
from topk_np._namespace import Array, array_namespace, why_no_gpu
from topk_np._process import UserError, interleave
from topk_np.kernels import engine

BACKENDS = ("cupy", "numpy")
CPU_BUILD = "the CPU build of CuPy: kernels run on the CPU, and times say nothing about a GPU"
OURS = "topk_np"
KEPT, WIDTH, DENSE_CHUNK = 64, 64, 1024
# Where the device is slow and where it is fast: rows and columns to select from, heads and
# lengths of attention.
SELECTIONS = {False: ((16, 512),), True: ((1024, 4096), (1024, 65536))}
ATTENTIONS = {False: ((1, 128),), True: ((8, 1024), (8, 4096), (8, 16384))}


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
    """A reservation about the results."""
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
        If CuPy is not installed, cannot be imported, sees no GPU or cannot run a kernel.
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
    device = Device(
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
    try:
        topk_np.top_k(device.asarray(np.ones((1, 2), np.float32)), 1)
        device.finish()
    except Exception as error:  # whatever CuPy raises without a compiler, for instance
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"CuPy cannot compile and run a kernel: {words}") from error
    return device


@contextmanager
def _without_copies_to_the_host() -> Iterator[None]:
    cupyx = importlib.import_module("cupyx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this will go, as it does not notice every copy
        with cupyx.allow_synchronize(False):
            yield


def _versions(xp: Any) -> dict[str, str]:
    return {
        "topk_np": topk_np.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        xp.__name__: xp.__version__,
    }


@dataclass(frozen=True)
class Timing:
    """Median seconds of several ways to do the same."""

    what: str
    seconds: dict[str, float]


def timings(device: Device, repeats: int) -> Iterator[Timing]:
    """Time selection and attention, for sizes that the device is up to."""
    for size in SELECTIONS[device.fast]:
        yield _time_selection(device, *size, repeats)
    for size in ATTENTIONS[device.fast]:
        yield _time_attention(device, *size, repeats)


def _time_selection(device: Device, rows: int, columns: int, repeats: int) -> Timing:
    """The k largest of each row: our kernel, and the library's own functions on float32."""
    drawn = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    scores, xp = device.asarray(drawn), device.xp
    runs: dict[str, Callable[[], Any]] = {
        OURS: partial(engine(device.namespace()).select, scores[None], KEPT),
        "argpartition": lambda: xp.argpartition(-scores, KEPT - 1, axis=1)[:, :KEPT],
        "argsort": lambda: xp.argsort(-scores, axis=1)[:, :KEPT],
    }
    return _time(f"{KEPT} of {columns:,}, {rows:,} rows", runs, device, repeats)


def _time_attention(device: Device, heads: int, length: int, repeats: int) -> Timing:
    """Attention forward and backward in float32, top-k, and dense in chunks."""
    drawn = np.random.default_rng(0).standard_normal((3, heads, length, WIDTH), np.float32)
    query, key, value = (device.asarray(array) for array in drawn)

    def topk() -> Any:
        out, residuals = topk_np.topk_attention_fwd(query, key, value, k=KEPT)
        return topk_np.topk_attention_bwd(residuals, out)

    def dense() -> Any:
        out, residuals = topk_np.dense_attention_fwd(query, key, value, chunk_size=DENSE_CHUNK)
        return topk_np.dense_attention_bwd(residuals, out)

    runs: dict[str, Callable[[], Any]] = {OURS: topk, "dense attention": dense}
    return _time(f"attention, {heads} heads, length {length:,}", runs, device, repeats)


def _time(what: str, runs: dict[str, Callable[[], Any]], device: Device, repeats: int) -> Timing:
    def to_the_end(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (run(), device.finish())[0]

    seconds = interleave(
        {name: to_the_end(run) for name, run in runs.items()}, repeats, lambda name: None
    )
    return Timing(what, {name: median(found) for name, found in seconds.items()})
