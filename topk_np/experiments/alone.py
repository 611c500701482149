"""A function in a process of its own, whose peak of memory is nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

from topk_np.bench.alone import peak_memory

Arguments = ParamSpec("Arguments")
Out = TypeVar("Out")


def run_alone(
    function: Callable[Arguments, Out], /, *args: Arguments.args, **kwargs: Arguments.kwargs
) -> tuple[Out, int]:
    """What a function of a module returns in a new process, and the peak of that in bytes."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        out = pool.submit(function, *args, **kwargs).result()
        return out, pool.submit(peak_memory).result()
