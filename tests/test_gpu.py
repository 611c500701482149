"""What callers see where CuPy is installed and there is no GPU for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import topk_np
from topk_np import diagnostics
from topk_np._namespace import why_no_gpu


class RuntimeFailure(RuntimeError):
    """As CuPy raises where there is no driver."""


class CupyArray:
    """An array of memory that another library owns: the one kind that needs no driver."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.ndim = len(shape)
        self.dtype = np.dtype(np.float32)


def installed(count: Callable[[], int]) -> ModuleType:
    """A module in CuPy's place whose driver is asked by `count` for the number of devices."""
    cupy = ModuleType("cupy")
    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=RuntimeFailure)
    members = {
        "__version__": "14.2.0",
        "ndarray": CupyArray,
        "cuda": SimpleNamespace(runtime=runtime),
    }
    vars(cupy).update(members)
    return cupy


def no_driver() -> int:
    raise RuntimeFailure("cudaErrorInsufficientDriver:\nold or missing")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """Whether there is a GPU is asked once a process."""
    why_no_gpu.cache_clear()
    yield
    why_no_gpu.cache_clear()


@pytest.mark.parametrize(
    ("count", "reason"),
    [(no_driver, "cudaErrorInsufficientDriver: old or missing"), (lambda: 0, "no device")],
)
def test_it_is_said_why_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, count: Callable[[], int], reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", installed(count))
    line = f"CuPy 14.2.0 finds no GPU ({reason}): it needs one, and an NVIDIA driver"
    assert why_no_gpu() == line


def test_with_a_gpu_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", installed(lambda: 1))
    assert why_no_gpu() is None


there, here = CupyArray(4, 4), np.ones((4, 4), np.float32)
_, residuals = topk_np.topk_attention_fwd(here, here, here, k=1)
weights = topk_np.MultiheadWeights(there, there, there, there)
CALLS: dict[str, Callable[[], Any]] = {
    "KVCache": lambda: topk_np.KVCache().append(there, there),
    "array_namespace": lambda: topk_np.array_namespace(there),
    "dense_attention": lambda: topk_np.dense_attention(there, there, there),
    "dense_attention_fwd": lambda: topk_np.dense_attention_fwd(there, there, there),
    "dense_ffn": lambda: topk_np.dense_ffn(there, there, there),
    "dense_ffn_fwd": lambda: topk_np.dense_ffn_fwd(there, there, there),
    "error_bound": lambda: diagnostics.error_bound(there, there, there, k=1),
    "kept_mass": lambda: diagnostics.kept_mass(there, there, k=1),
    "merge_heads": lambda: topk_np.merge_heads(there),
    "multihead_attention": lambda: topk_np.multihead_attention(there, weights, heads=1, k=1),
    "rotary_embedding": lambda: topk_np.rotary_embedding(there, topk_np.Rope()),
    "split_heads": lambda: topk_np.split_heads(there, 2),
    "top_k": lambda: topk_np.top_k(there, 1),
    "topk_attention": lambda: topk_np.topk_attention(there, there, there, k=1),
    "topk_attention_bwd": lambda: topk_np.topk_attention_bwd(residuals, there),
    "topk_attention_fwd": lambda: topk_np.topk_attention_fwd(there, there, there, k=1),
    "topk_ffn": lambda: topk_np.topk_ffn(there, there, there, k=1),
    "topk_ffn_fwd": lambda: topk_np.topk_ffn_fwd(there, there, there, k=1),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_function_says_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", installed(no_driver))
    with pytest.raises(RuntimeError, match=r"^[a-z0-9' ]+ is a CuPy array, but .* finds no GPU"):
        CALLS[name]()


def test_numpy_arrays_do_not_need_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", installed(no_driver))
    assert topk_np.topk_attention(here, here, here, k=1).shape == (4, 4)
    assert topk_np.topk_ffn(here, here, here, k=1, activation="gelu").shape == (4, 4)
