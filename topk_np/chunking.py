"""How the work is cut into chunks of queries, and how many threads share it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from topk_np._namespace import check_integer

DEFAULT_MEMORY_BUDGET = 64 * 2**20  # bytes of scratch, shared by all workers
MOST_TASKS = 8  # run at once; each may hold this part of the budget

Task = TypeVar("Task")


def plan_chunk(
    queries: int, row_bytes: int, chunk_size: Any = None, memory_budget: Any = None
) -> int:
    """
    How many queries make a chunk: `chunk_size` if given, else what the memory budget holds.

    The plan depends on shapes and the budget alone, so that results do not depend on the machine.
    `row_bytes` is the scratch that one query needs.
    """
    if memory_budget is None:
        budget = DEFAULT_MEMORY_BUDGET
    else:
        budget = check_integer("memory_budget", memory_budget, least=1)
    fitting = budget // MOST_TASKS // max(row_bytes, 1)
    if fitting < 1:
        raise ValueError(
            f"memory_budget must be at least {MOST_TASKS * row_bytes} bytes for these lengths, "
            f"got {budget}"
        )
    if chunk_size is not None:
        return min(check_integer("chunk_size", chunk_size, least=1), max(queries, 1))
    return max(1, min(queries, fitting))


def chunks(length: int, size: int) -> Iterator[slice]:
    """The slices that cut `length` rows into chunks of `size`."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def check_workers(workers: Any) -> int | Executor:
    """Check the option `workers`: None is one for each core that this process may use."""
    if workers is None:
        return available_cores()
    if isinstance(workers, Executor):
        if isinstance(workers, ProcessPoolExecutor):
            raise TypeError(
                "workers must be an integer or an executor that runs threads, "
                "got a ProcessPoolExecutor, whose processes cannot write to our arrays"
            )
        return workers
    return check_integer("workers", workers, least=1)


def available_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(function: Callable[[Task], None], tasks: Iterable[Task], workers: int | Executor) -> None:
    """
    Call `function` on every task, in threads, with BLAS held to one thread.

    The calling thread works too, so a pool that is busy, even with this call itself, cannot block
    it. The first exception stops the rest and is raised here once every thread has let go.
    """
    tasks = list(tasks)
    threads = MOST_TASKS if isinstance(workers, Executor) else min(workers, MOST_TASKS)
    helpers = min(threads, len(tasks)) - 1
    queue, lock, stop = iter(tasks), threading.Lock(), threading.Event()

    def work() -> None:
        # Rows of NaN or inf are promised, not remarkable: no warnings about them.
        try:
            with np.errstate(all="ignore"):
                while not stop.is_set():
                    with lock:
                        task = next(queue, _DONE)
                    if task is _DONE:
                        return
                    function(task)
        except BaseException:
            stop.set()
            raise

    with one_blas_thread():
        if helpers < 1:
            work()
        elif isinstance(workers, Executor):
            _work_beside(work, workers, helpers)
        else:
            with ThreadPoolExecutor(helpers, "topk_np") as pool:
                _work_beside(work, pool, helpers)


_DONE: Any = object()


def _work_beside(work: Callable[[], None], pool: Executor, helpers: int) -> None:
    """Run `work` here and in up to `helpers` threads of the pool; return when all have ended."""
    futures: list[Future[None]] = []
    try:
        futures.extend(pool.submit(work) for _ in range(helpers))
        work()
    finally:
        started = [future for future in futures if not future.cancel()]
        errors = [future.exception() for future in started]
    for error in errors:
        if error is not None:
            raise error


class _BlasGuard:
    """Holds BLAS to one thread while anybody computes, and puts its setting back after the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit = _controller().limit(limits=1, user_api="blas")
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                limit, self._limit = self._limit, None
                limit.restore_original_limits()


_guard = _BlasGuard()  # module state, as BLAS's own setting is the process's


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # scans the loaded libraries: 1 ms, so once


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS has one thread inside, whoever else is inside too; afterwards what it had before."""
    _guard.enter()
    try:
        yield
    finally:
        _guard.leave()
