"""What goes wrong beside a call: the error comes through, nothing is left, BLAS is put back."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

import topk_np
from tests.oracles import assert_same_bits
from tests.test_workers import blas_threads, two_blas_threads
from topk_np.core import passes, scores
from topk_np.kernels import numpy as engine
from topk_np.schedule import gradients

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
    "outputs": (passes, "output_of"),
    "sums of gradients": (gradients, "zeros"),
    "scores": (engine, "product"),
    "queries of a chunk": (scores, "cast"),
    "products with what is kept": (engine, "gather_matmul"),
    "gradients of what is kept": (engine, "sampled_matmul"),
    "additions": (engine, "scatter_matmul"),
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
        for number in range(1, 40, 8):
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
        message = "workers must be an executor .* got Refusing: cannot schedule new futures"
        with pytest.raises(RuntimeError, match=message):
            both_ways(executor)
        assert blas_threads() == {2}
    executor.pool.shutdown()


def test_an_executor_that_was_shut_down_is_named() -> None:
    with ThreadPoolExecutor(2) as pool:
        assert_identical(both_ways(pool), both_ways())
    with (
        two_blas_threads(),
        pytest.raises(
            RuntimeError, match=r"workers must be .* got ThreadPoolExecutor: .* shutdown"
        ),
    ):
        both_ways(pool)


def test_a_thread_of_our_own_that_cannot_start_is_no_fault_of_the_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with two_blas_threads():
        with pytest.raises(RuntimeError, match=r"^can't start new thread$"):
            both_ways()
        assert blas_threads() == {2}


def test_an_executor_whose_threads_cannot_start_is_named() -> None:
    def fails() -> None:
        raise OSError("no more threads")

    with ThreadPoolExecutor(1, initializer=fails) as pool:
        broken = pool.submit(int)
        assert isinstance(broken.exception(timeout=60), RuntimeError)
        with pytest.raises(RuntimeError, match=r"workers must be .* got ThreadPoolExecutor: "):
            both_ways(pool)


class Losing(ThreadPoolExecutor):
    """An executor that takes all work and does none."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


def test_an_executor_that_never_starts_holds_nothing_up() -> None:
    with Losing(2) as pool:
        assert_identical(both_ways(pool), both_ways())


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


def test_memory_stays_flat_over_many_calls() -> None:
    """10,000 calls, and a hundredth of them with threads: by default a twentieth of that."""
    number = 10_000 if settings().max_examples >= 1000 else 500
    x = np.ones((2, 1), np.float32)

    def once(workers: int) -> None:
        out, residuals = topk_np.topk_attention_fwd(x, x, x, k=1, workers=workers)
        topk_np.topk_attention_bwd(residuals, out)
        topk_np.dense_ffn(x, x, x, workers=workers)
        with pytest.raises(ValueError, match="k must be at least 1"):
            topk_np.topk_attention(x, x, x, k=0)

    def left_after(number: int) -> tuple[int, int]:
        for i in range(number):
            once(1 if i % 100 else 3)
        gc.collect()
        return sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        left_after(number)  # with what is kept for all calls
        blocks, size = left_after(1)
        more_blocks, more_size = left_after(number)
    finally:
        tracemalloc.stop()
    assert more_blocks - blocks < number // 2  # not one of Python's blocks a call
    assert more_size - size < 40 * number  # nor the smallest of NumPy's arrays
