"""Each engine with each array library that it takes, called on NumPy arrays."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.backends import Backend, selected_backends
from tests.conftest import TINY
from topk_np.kernels import Selection
from topk_np.kernels.tuning import Tuning


class Engine(NamedTuple):
    name: str
    """Of its module in `topk_np.kernels`, or "atomic"."""
    backend: Backend
    tuning: Tuning = Tuning()

    @property
    def module(self) -> Any:
        """The engine itself, imported when it is needed."""
        if self.name == "atomic":
            return importlib.import_module("topk_np.kernels.cupy").atomic
        return importlib.import_module(f"topk_np.kernels.{self.name}")

    def given(self, argument: Any) -> Any:
        """An argument of a primitive: NumPy arrays become the backend's, read-only where it can."""
        return self.backend.asarray(argument) if isinstance(argument, np.ndarray) else argument

    def own(self, array: np.ndarray) -> Any:
        """A copy of an array that the engine may write to."""
        return array.copy() if self.backend.name == "numpy" else self.backend.asarray(array.copy())

    def pattern(self, indices: np.ndarray, keys: int) -> Any:
        """What products take in the place of indices."""
        return self.module.pattern(self.given(indices), keys)

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a primitive on arrays of NumPy or the backend, and bring back what it returns."""
        with np.errstate(all="ignore"):
            result = getattr(self.module, name)(*map(self.given, arguments), **options)
        return self.answer(result)

    def answer(self, result: Any) -> Any:
        """An array or several as NumPy's."""
        if isinstance(result, Selection):
            return Selection(*map(self.backend.to_numpy, result))
        if isinstance(result, (tuple, list)):
            return [self.backend.to_numpy(array) for array in result]
        return self.backend.to_numpy(result)


def engines() -> list[Any]:
    """Each engine with each array library it takes; NumPy's also where all decisions fall early."""
    found = []
    for backend in selected_backends():
        if backend.name == "numpy":
            found.append(pytest.param(Engine("numpy", backend), id="numpy"))
            found.append(pytest.param(Engine("numpy", backend, TINY), id="numpy-tiny"))
        if backend.name == "cupy":
            found.append(pytest.param(Engine("cupy", backend), id="cupy"))
            found.append(pytest.param(Engine("atomic", backend), id="cupy-atomic"))
        found.append(pytest.param(Engine("portable", backend), id=f"portable-{backend.name}"))
    return found
