"""How work is cut and shared: plans depend on shapes alone, every task runs once, BLAS is held."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from topk_np.chunking import (
    available_cores,
    check_workers,
    chunks,
    one_blas_thread,
    plan_chunk,
    run,
)

counts = st.integers(1, 10**6)


def blas_threads() -> set[int]:
    """The number of threads of the BLAS that NumPy uses; SciPy may have brought one of its own."""
    return {
        info["num_threads"]
        for info in threadpool_info()
        if info["user_api"] == "blas" and "scipy.libs" not in info["filepath"]
    }


@contextmanager
def two_blas_threads() -> Iterator[None]:
    """Make two threads the setting to return to, so that a guard that does nothing is seen."""
    with threadpool_limits(2, user_api="blas"):
        assert blas_threads() == {2}
        yield


@given(length=st.integers(0, 300), size=st.integers(1, 301))
def test_chunks_cover_every_row_once_in_order(length: int, size: int) -> None:
    pieces = list(chunks(length, size))
    assert [row for piece in pieces for row in range(length)[piece]] == list(range(length))
    assert all(0 < piece.stop - piece.start <= size for piece in pieces)


@given(queries=counts, row_bytes=counts, share=counts)
def test_a_planned_chunk_fits_an_eighth_of_the_budget(
    queries: int, row_bytes: int, share: int
) -> None:
    budget = 8 * row_bytes + share
    size = plan_chunk(queries, row_bytes, memory_budget=budget)
    assert 1 <= size <= queries
    assert size * row_bytes * 8 <= budget
    assert size == queries or (size + 1) * row_bytes * 8 > budget


@given(queries=counts, row_bytes=counts)
def test_a_budget_too_small_is_refused_with_the_least_that_works(
    queries: int, row_bytes: int
) -> None:
    least = 8 * row_bytes
    assert plan_chunk(queries, row_bytes, memory_budget=least) == 1
    with pytest.raises(ValueError, match=rf"memory_budget must be at least {least} bytes"):
        plan_chunk(queries, row_bytes, memory_budget=least - 1)


@given(queries=counts, size=counts)
def test_a_given_chunk_size_is_used_up_to_all_queries(queries: int, size: int) -> None:
    assert plan_chunk(queries, 1, chunk_size=size) == min(size, queries)


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("tasks", [0, 1, 2, 50])
def test_every_task_runs_once(workers: int, tasks: int) -> None:
    done: list[int] = []
    run(done.append, range(tasks), workers)
    assert sorted(done) == list(range(tasks))


def test_tasks_run_on_the_threads_of_a_given_executor() -> None:
    names: set[str] = set()
    both_in = threading.Barrier(2, timeout=60)

    def work(task: int) -> None:
        both_in.wait()  # returns once two threads are at work
        names.add(threading.current_thread().name)

    with ThreadPoolExecutor(1, "mine") as pool:
        run(work, range(2), pool)
    assert {name.partition("_")[0] for name in names} == {"MainThread", "mine"}


def test_a_busy_executor_does_not_hold_up_the_call() -> None:
    """Even a call made on the pool's own only thread, which waits for nobody but itself."""
    done: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, done.append, range(5), pool).result(timeout=60)
    assert sorted(done) == list(range(5))


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_the_exception_of_a_task_is_raised(workers: int) -> None:
    def work(task: int) -> None:
        if task == 7:
            raise KeyError("task 7")

    with two_blas_threads():
        with pytest.raises(KeyError, match="task 7"):
            run(work, range(10), workers)
        assert blas_threads() == {2}


def test_the_exception_of_another_thread_is_raised() -> None:
    both_in = threading.Barrier(2, timeout=60)

    def work(task: int) -> None:
        both_in.wait()
        if threading.current_thread() is not threading.main_thread():
            raise KeyError("another thread")

    with pytest.raises(KeyError, match="another thread"):
        run(work, range(2), 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_blas_has_one_thread_while_tasks_run_and_its_own_number_afterwards(workers: int) -> None:
    seen: list[set[int]] = []
    with two_blas_threads():
        run(lambda task: seen.append(blas_threads()), range(4), workers)
        assert blas_threads() == {2}
    assert seen == [{1}] * 4


def test_interleaved_guards_restore_blas_when_the_last_one_leaves() -> None:
    first, second = one_blas_thread(), one_blas_thread()
    with two_blas_threads():
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == {2}


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_do_not_warn_about_what_is_not_finite(workers: int) -> None:
    one = np.ones(2)
    run(lambda task: np.log(one - 1) - one / 0 + np.exp(1e6 * one), range(4), workers)  # type: ignore[arg-type]


def test_workers_are_the_cores_of_this_process_unless_given() -> None:
    assert check_workers(None) == available_cores() >= 1
    assert check_workers(3) == check_workers(np.int64(3)) == 3


@pytest.mark.parametrize("workers", [True, 2.0, "2", [2], np.ones(1)])
def test_workers_of_a_wrong_type_are_refused(workers: Any) -> None:
    with pytest.raises(TypeError, match="workers must be an integer"):
        check_workers(workers)


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused(workers: int) -> None:
    with pytest.raises(ValueError, match=f"workers must be at least 1, got {workers}"):
        check_workers(workers)


def test_a_process_pool_is_refused() -> None:
    with (
        ProcessPoolExecutor(1) as pool,
        pytest.raises(TypeError, match="executor that runs threads, got a ProcessPoolExecutor"),
    ):
        check_workers(pool)


def test_the_number_of_cores_is_found_where_affinity_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert available_cores() == 5
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert available_cores() == 1
