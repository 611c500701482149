"""The array libraries the suite runs on.

Arrays are made read-only where the library can, and on a device that is not the default where the
library has one, so that a write to an input or a hidden transfer fails the test that causes it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import array_api_strict
import numpy as np

import topk_np
from topk_np._namespace import why_no_gpu

Array = Any


@dataclass(frozen=True)
class Backend:
    """One array library: how NumPy arrays get there and back, and which dtypes it computes in."""

    name: str
    xp: Any
    device: Any
    dtypes: tuple[str, ...]
    asarray: Callable[[np.ndarray], Array]
    to_numpy: Callable[[Array], np.ndarray]

    def __repr__(self) -> str:
        return self.name

    def arrays(self, *arrays: np.ndarray | None) -> tuple[Array, ...]:
        """Bring several arrays over; None stays None."""
        return tuple(None if array is None else self.asarray(array) for array in arrays)

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Bring the arrays among keyword arguments over; other values stay as they are."""
        return {name: self._option(value) for name, value in options.items()}

    def _option(self, value: Any) -> Any:
        if isinstance(value, topk_np.T5Bias):
            return replace(value, table=self.asarray(value.table))
        if isinstance(value, topk_np.ALiBi):
            return replace(value, slopes=self.asarray(value.slopes))
        return self.asarray(value) if isinstance(value, np.ndarray) else value


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a read-only view: writing to it raises."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _numpy() -> Backend:
    return Backend(
        "numpy", np, "cpu", ("float16", "float32", "float64"), read_only, lambda array: array
    )


NUMPY = _numpy()


def _strict() -> Backend:
    device = array_api_strict.Device("device1")
    cpu = array_api_strict.Device("CPU_DEVICE")
    return Backend(
        "strict",
        array_api_strict,
        device,
        ("float32", "float64"),
        lambda array: array_api_strict.asarray(read_only(array), device=device),
        lambda array: np.asarray(array.to_device(cpu)),
    )


def _cupy() -> Backend:
    cupy = importlib.import_module("cupy")
    return Backend(
        "cupy",
        cupy,
        cupy.cuda.Device(0),
        ("float16", "float32", "float64"),
        cupy.asarray,
        cupy.asnumpy,
    )


def _torch() -> Backend:
    torch = importlib.import_module("torch")
    return Backend(
        "torch",
        torch,
        torch.device("cpu"),
        ("float16", "float32", "float64"),
        lambda array: torch.tensor(np.array(array)),  # of a copy: tensors cannot be read-only
        lambda tensor: tensor.numpy(),
    )


def _jax() -> Backend:
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    return Backend(
        "jax",
        jax.numpy,
        jax.devices("cpu")[0],
        ("float16", "float32", "float64"),
        jax.numpy.asarray,
        np.asarray,
    )


def _cupy_usable() -> bool:
    if importlib.util.find_spec("cupy") is None:
        return False
    importlib.import_module("cupy")
    return why_no_gpu() is None


_MAKERS = {"numpy": lambda: NUMPY, "strict": _strict, "cupy": _cupy, "torch": _torch, "jax": _jax}


def backend(name: str) -> Backend:
    """The backend of that name, whose library has to be installed."""
    return _MAKERS[name]()


def selected_backends() -> list[Backend]:
    """
    The backends named by TOPK_NP_BACKENDS.

    Without it NumPy, the strict library, and CuPy where it is usable; never the large frameworks.
    """
    chosen = os.environ.get("TOPK_NP_BACKENDS")
    if chosen is None:
        names = ["numpy", "strict", *(["cupy"] if _cupy_usable() else [])]
    else:
        names = [name.strip() for name in chosen.split(",") if name.strip()]
    unknown = sorted(set(names) - set(_MAKERS))
    if unknown:
        raise ValueError(f"TOPK_NP_BACKENDS names {unknown}; allowed: {sorted(_MAKERS)}")
    return [backend(name) for name in names]
