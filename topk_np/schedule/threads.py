"""Threads that share the work of one call, with BLAS held to one thread meanwhile."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import cache
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
from threadpoolctl import ThreadpoolController

from topk_np._namespace import Array, check_integer

MOST_TASKS = 8  # run at once; the memory budget is shared by as many

# NumPy copies a broadcast column beside rows that fit its buffer; with a small one it need not,
# and comparing a block of scores with a value for each row takes half the time.
BUFFER_ELEMENTS = 512

# The C library keeps freed memory for the next call, which saves page faults, up to twice the
# largest block that it has seen freed. A block that is never written to will do.
np.empty(2**24, np.int8)

Task = TypeVar("Task")
Result = TypeVar("Result")


def check_workers(workers: Any) -> int | Executor:
    """Check the option `workers`: None is one for each core that this process may use."""
    if workers is None:
        return available_cores()
    if isinstance(workers, Executor):
        # A process pool implies its module is loaded; to import it would add 25 % to import time.
        process = sys.modules.get("concurrent.futures.process")
        if process is not None and isinstance(workers, process.ProcessPoolExecutor):
            raise TypeError(
                "workers must be an integer or an executor that runs threads, "
                "got a ProcessPoolExecutor, whose processes cannot write to our arrays"
            )
        return workers
    return check_integer("workers", workers, least=1)


def lasting(workers: int | Executor | None) -> int | Executor:
    """
    The option `workers` for a row of small calls, which share the same threads.

    Threads of their own for each would take as long as the work. They end when nobody holds the
    pool any longer.
    """
    threads = check_workers(workers)
    if isinstance(threads, Executor) or threads == 1:
        return threads
    return ThreadPoolExecutor(min(threads, MOST_TASKS) - 1, "topk_np")


def available_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerTeam:
    """
    Up to `MOST_TASKS` threads, the calling one among them, for one call.

    The calling thread works too, so a pool that is busy, even with this call itself, cannot block
    it. Which thread does what changes no result.
    """

    def __init__(self, workers: int | Executor) -> None:
        self._local = threading.local()
        self._own_pool: ThreadPoolExecutor | None = None
        self._pool = workers if isinstance(workers, Executor) else None
        self.threads = MOST_TASKS if isinstance(workers, Executor) else min(workers, MOST_TASKS)

    @property
    def scratch(self) -> dict[str, Array]:
        """Memory of the calling thread, which it uses again from task to task."""
        if not hasattr(self._local, "scratch"):
            self._local.scratch = {}
        return self._local.scratch  # type: ignore[no-any-return]

    @property
    def in_flight(self) -> int:
        """
        Tasks whose results are held at once, where they are added up in order.

        Enough to keep all threads busy, and so few that the next use the same memory again.
        """
        return min(2 * self.threads, MOST_TASKS)

    def __enter__(self) -> WorkerTeam:
        """Hold BLAS to one thread."""
        _guard.enter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give BLAS its threads back, and end our own."""
        _guard.leave(self)
        if self._own_pool is not None:
            self._own_pool.shutdown()

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> list[Result]:
        """
        ``[function(task) for task in tasks]``, shared among the threads.

        The first exception stops the rest and is raised here once every thread has let go.
        """
        tasks = list(tasks)
        results: list[Any] = [None] * len(tasks)
        left: SimpleQueue[tuple[int, Task]] = SimpleQueue()
        for numbered in enumerate(tasks):
            left.put(numbered)
        stopped: list[bool] = []

        def work(worker: int) -> None:
            try:
                _touch_packing_buffer(worker)
                # Rows of NaN or inf are promised, not remarkable: no warnings about them.
                with np.errstate(all="ignore"):
                    np.setbufsize(BUFFER_ELEMENTS)  # until errstate ends
                    while not stopped:
                        i, task = left.get_nowait()
                        results[i] = function(task)
            except Empty:
                return
            except BaseException:
                stopped.append(True)
                raise

        helpers = min(self.threads, len(tasks)) - 1
        if helpers < 1:
            work(0)
        else:
            self._work_beside(work, helpers, stopped)
        return results

    def _work_beside(self, work: Callable[[int], None], helpers: int, stopped: list[bool]) -> None:
        """Run `work` here and in up to `helpers` threads; return when all have ended."""
        if self._pool is None:
            self._pool = self._own_pool = ThreadPoolExecutor(self.threads - 1, "topk_np")
        futures: list[Future[None]] = []
        try:
            futures.extend(self._submit(self._pool, work, 1 + i) for i in range(helpers))
            work(0)
        except BaseException:
            stopped.append(True)
            raise
        finally:
            started = [future for future in futures if not future.cancel()]
            errors = [future.exception() for future in started]
        for error in errors:
            if error is not None:
                raise error

    def _submit(self, pool: Executor, work: Callable[[int], None], worker: int) -> Future[None]:
        try:
            return pool.submit(work, worker)
        except RuntimeError as error:  # it was shut down, or one of its threads could not start
            if pool is self._own_pool:
                raise
            raise RuntimeError(
                f"workers must be an executor that takes work, got {type(pool).__name__}: {error}"
            ) from error


class _BlasGuard:
    """
    Holds BLAS to one thread while any team computes, and restores its setting after the last.

    The first to enter and the last to leave may be two threads. The setting is the process's, but
    threadpoolctl lets only the thread that changed it first change it again: so that ownership is
    given up before and after each change. A team interrupted while entering or leaving is dropped
    (weak reference); the next one to leave restores the setting.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: WeakSet[WorkerTeam] = WeakSet()
        self._before: list[tuple[Any, int]] = []  # empty once it is put back

    def enter(self, team: WorkerTeam) -> None:
        with self._lock:
            if not self._before:
                self._before = [(library, library.num_threads) for library in _blas_libraries()]
            if not self._inside:
                for library, _ in self._before:
                    _set_threads(library, 1)
            self._inside.add(team)

    def leave(self, team: WorkerTeam) -> None:
        with self._lock:
            self._inside.discard(team)
            if not self._inside:
                for library, threads in self._before:
                    _set_threads(library, threads)
                self._before = []

    def begin_anew(self) -> None:
        """In a forked process: the threads that were inside are not there, nor who has the lock."""
        self._lock = threading.Lock()
        self._inside = WeakSet()
        for library, threads in self._before:
            _set_threads(library, threads)
        self._before = []


_guard = _BlasGuard()  # module state, as BLAS's own setting is the process's
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_guard.begin_anew)


@cache
def _blas_libraries() -> list[Any]:
    # Scans the loaded libraries: 1 ms, so once.
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


@cache
def _touch_packing_buffer(worker: int) -> None:
    """
    Write to all of the memory that BLAS packs operands in, once for each worker.

    OpenBLAS prefetches beyond what it has packed. Where those pages were never touched that is
    slow: products with the keys of a head take a fifth longer until a larger one has been there.
    Its buffers stay for the life of the process; there is one for each thread that computes.
    """
    np.ones((128, 384), np.float32) @ np.ones((384, 384), np.float32)


def _set_threads(library: Any, threads: int) -> None:
    give_up = getattr(library, "clear_controlling_thread", lambda force: None)
    give_up(force=True)
    library.set_num_threads(threads)
    give_up(force=True)
