"""The array libraries that implementations are written for; how arrays get there and back."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from topk_np._namespace import Array

Function = Callable[..., Array]
Pulled = tuple[Array, tuple[Array | None, ...]]


class CannotCheck(Exception):
    """Why an implementation cannot be checked, in one line."""


@dataclass(frozen=True)
class Library:
    """One array library."""

    name: str
    asarray: Callable[[np.ndarray], Array]
    """A copy of a NumPy array."""
    to_numpy: Callable[[Array], np.ndarray]
    differentiate: Callable[[Function, tuple[Array, ...], Array], Pulled] | None = None
    """``(f, arrays, dout) -> (f(*arrays), gradients)``, where the library can; or None."""

    def value(self, value: Any) -> Any:
        """A value of an option: arrays, and those in a bias, are brought over; others stay."""
        if isinstance(value, np.ndarray):
            return self.asarray(value)
        if is_dataclass(value) and not isinstance(value, type):
            parts = {f.name: self.value(getattr(value, f.name)) for f in fields(value)}
            return replace(value, **parts)
        return value


def _numpy() -> Library:
    return Library("numpy", np.array, lambda array: array)


def _cupy() -> Library:
    cupy = importlib.import_module("cupy")
    return Library("cupy", cupy.array, cupy.asnumpy)


def _torch() -> Library:
    torch = importlib.import_module("torch")

    def differentiate(function: Function, arrays: tuple[Array, ...], dout: Array) -> Pulled:
        inputs = tuple(array.detach().requires_grad_() for array in arrays)
        out = function(*inputs)
        if not out.requires_grad:
            raise RuntimeError("the output is not differentiable")
        return out, torch.autograd.grad(out, inputs, dout, allow_unused=True)

    def asarray(array: np.ndarray) -> Array:  # of bfloat16, which NumPy and PyTorch name apart
        if array.dtype.name != "bfloat16":
            return torch.from_numpy(array.copy())
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)

    def to_numpy(tensor: Array) -> np.ndarray:
        tensor = tensor.detach().cpu()
        if tensor.dtype != torch.bfloat16:
            return np.asarray(tensor)
        return np.asarray(tensor.contiguous().view(torch.int16)).view("bfloat16")

    return Library("torch", asarray, to_numpy, differentiate)


def _jax() -> Library:
    jax = importlib.import_module("jax")

    def differentiate(function: Function, arrays: tuple[Array, ...], dout: Array) -> Pulled:
        out, pullback = jax.vjp(function, *arrays)
        return out, pullback(dout)

    return Library("jax", jax.numpy.array, np.asarray, differentiate)


MAKERS = {"cupy": _cupy, "jax": _jax, "numpy": _numpy, "torch": _torch}


def find_library(library: str | Library, dtype: str) -> Library:
    """The library of that name, which must have the dtype."""
    if isinstance(library, str):
        if library not in MAKERS:
            raise ValueError(f"library must be one of {', '.join(MAKERS)}, got {library!r}")
        try:
            library = MAKERS[library]()
        except ModuleNotFoundError as error:
            raise CannotCheck(f"the package {error.name} is missing") from error
    if dtype == "bfloat16":
        try:
            importlib.import_module("ml_dtypes")  # makes the name known to NumPy
        except ModuleNotFoundError as error:
            raise CannotCheck("bfloat16 needs the package ml_dtypes") from error
    there = library.to_numpy(library.asarray(np.zeros(1, dtype)))
    if there.dtype.name != dtype:
        raise CannotCheck(
            f"{library.name} makes {there.dtype} of {dtype}: choose another dtype, or in JAX "
            "enable jax_enable_x64"
        )
    return library
