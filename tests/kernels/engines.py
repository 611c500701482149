"""Each engine with each array library that it takes, called on NumPy arrays."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

import topk_np.kernels.numpy
import topk_np.kernels.portable
from tests.backends import Backend, selected_backends


class Engine(NamedTuple):
    module: ModuleType
    backend: Backend

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a primitive on NumPy arrays; floating-point warnings are the caller's business."""
        given = [self.backend.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
        with np.errstate(all="ignore"):
            result = getattr(self.module, name)(*given)
        if isinstance(result, tuple):
            return type(result)(*(self.backend.to_numpy(array) for array in result))
        return self.backend.to_numpy(result)


def engines() -> list[Any]:
    """Each engine with each array library it takes."""
    found = []
    for backend in selected_backends():
        if backend.name == "numpy":
            found.append(pytest.param(Engine(topk_np.kernels.numpy, backend), id="numpy"))
        if backend.name == "cupy":
            for name in ("cupy", "cupy_atomic"):
                module = importlib.import_module(f"topk_np.kernels.{name}")
                found.append(pytest.param(Engine(module, backend), id=name))
        name = f"portable-{backend.name}"
        found.append(pytest.param(Engine(topk_np.kernels.portable, backend), id=name))
    return found


each_engine = pytest.mark.parametrize("engine", engines())
