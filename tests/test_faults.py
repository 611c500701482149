"""What goes wrong beside a call: the error comes through, nothing is left, BLAS is put back."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import topk_np
import topk_np.core
from tests.oracles import assert_same_bits
from tests.test_workers import blas_threads, two_blas_threads
from topk_np.problem import Problem
from topk_np.workers import Scratch

pytestmark = pytest.mark.usefixtures("tiny_plans")  # small problems have work for every thread

ARRAYS = tuple(np.random.default_rng(0).standard_normal((3, 2, 24, 8)))


def both_ways(workers: Any = 3, arrays: tuple[Any, ...] = ARRAYS) -> list[np.ndarray]:
    """The output of top-k attention, and its gradients."""
    out, residuals = topk_np.topk_attention_fwd(*arrays, k=4, workers=workers)
    return [out, *topk_np.topk_attention_bwd(residuals, np.ones_like(out))[:3]]


def assert_identical(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)


def failing_at(number: int, function: Callable[..., Any], error: BaseException) -> Any:
    """`function`, but the call of that number raises an error."""
    calls, lock = iter(range(10**6)), threading.Lock()

    def called(*args: Any, **kwargs: Any) -> Any:
        with lock:
            mine = next(calls)
        if mine == number:
            raise error
        return function(*args, **kwargs)

    return called


ALLOCATIONS: dict[str, tuple[Any, str]] = {
    "arrays of zeros": (Problem, "zeros"),
    "scratch": (Scratch, "matrix"),
    "rows of a task": (Problem, "part"),
    "products with what is kept": (topk_np.core, "gather_matmul"),
    "sums": (topk_np.core, "sampled_matmul"),
}


@pytest.mark.parametrize("error", [MemoryError("full"), KeyboardInterrupt()], ids=["memory", "key"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_an_error_anywhere_comes_through_and_leaves_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch, name: str, workers: int, error: BaseException
) -> None:
    owner, attribute = ALLOCATIONS[name]
    function, expected = getattr(owner, attribute), both_ways()
    with two_blas_threads():
        raised = 0
        for number in range(0, 40, 3):
            with monkeypatch.context() as patch:
                patch.setattr(owner, attribute, failing_at(number, function, error))
                try:
                    both_ways(workers)
                except type(error):
                    raised += 1
            assert blas_threads() == {2}
        assert raised
    assert not [t for t in threading.enumerate() if t.name.startswith("topk_np")]
    assert_identical(both_ways(), expected)


class Refusing(Executor):
    """An executor that takes some work, and then no more."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.pool = ThreadPoolExecutor(1)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.takes == 0:
            raise RuntimeError("cannot schedule new futures")
        self.takes -= 1
        return self.pool.submit(fn, *args, **kwargs)


@pytest.mark.parametrize("takes", [0, 1, 2])
def test_an_executor_that_fails_is_an_error(takes: int) -> None:
    executor = Refusing(takes)
    with two_blas_threads():
        with pytest.raises(RuntimeError, match="cannot schedule new futures"):
            both_ways(executor)
        assert blas_threads() == {2}
    executor.pool.shutdown()


def test_errors_about_arguments_leave_blas_alone() -> None:
    with two_blas_threads():
        wrong: list[dict[str, Any]] = [
            {"k": 0},
            {"k": 1, "workers": 0},
            {"k": 1, "memory_budget": 1},
        ]
        for options in wrong:
            with pytest.raises(ValueError, match="must be at least"):
                topk_np.topk_attention(*ARRAYS, **{"k": 1, **options})
        assert blas_threads() == {2}


def test_32_threads_at_once_get_the_bits_of_one() -> None:
    expected = both_ways()
    ready = threading.Barrier(32, timeout=60)

    def call(i: int) -> list[np.ndarray]:
        ready.wait()
        return both_ways(1 + i % 3)

    with two_blas_threads():
        with ThreadPoolExecutor(32) as pool:
            for found in pool.map(call, range(32)):
                assert_identical(found, expected)
        assert blas_threads() == {2}


def test_others_who_set_the_threads_of_blas_meanwhile_change_no_bit() -> None:
    expected, done = both_ways(), threading.Event()

    def meddle() -> None:
        while not done.is_set():
            with threadpool_limits(2, user_api="blas"):
                pass

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        for _ in range(20):
            assert_identical(both_ways(), expected)
    finally:
        done.set()
        thread.join()


def test_read_only_and_memory_mapped_inputs_work(tmp_path: Path) -> None:
    mapped = []
    for i, array in enumerate(ARRAYS):
        np.save(tmp_path / f"{i}.npy", array)
        mapped.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    found = both_ways(arrays=tuple(mapped))
    assert {type(array) for array in found} == {np.ndarray}
    assert_identical(found, both_ways())


def in_a_process(queue: Any) -> None:
    queue.put(both_ways())


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_give_the_same_bits(method: str) -> None:
    expected = both_ways()
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=in_a_process, args=(queue,))
    process.start()
    found = queue.get(timeout=120)
    process.join(60)
    if method == "fork":
        assert_identical(found, expected)
    else:  # its plans are the ordinary ones, which change rounding
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_nothing_is_left_of_10_000_calls() -> None:
    x = np.ones((1, 1), np.float32)

    def blocks_after(number: int) -> int:
        for _ in range(number):
            topk_np.topk_attention(x, x, x, k=1, workers=1)
        gc.collect()
        return sys.getallocatedblocks()

    blocks_after(100)  # what is kept for all calls
    before = blocks_after(10)
    assert blocks_after(9_890) - before < 1_000  # of Python's memory: a tenth of one a call
