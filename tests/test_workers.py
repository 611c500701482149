"""How work is shared: every task runs once, errors come through, BLAS is held to one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import topk_np
from tests.backends import Backend
from topk_np.kernels import engine, tuning
from topk_np.options.check import attention_call
from topk_np.schedule.plan import schedule_call
from topk_np.schedule.threads import WorkerTeam, available_cores, check_workers


def run(function: Callable[[Any], Any], tasks: Iterable[Any], workers: Any) -> list[Any]:
    """`function` on every task, by a team of that many workers."""
    with WorkerTeam(workers) as team:
        return team.map(function, tasks)


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


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("tasks", [0, 1, 2, 50])
def test_every_task_runs_once_and_results_are_in_order(workers: int, tasks: int) -> None:
    done: list[int] = []

    def work(task: int) -> int:
        done.append(task)
        return task**2

    assert run(work, iter(range(tasks)), workers) == [task**2 for task in range(tasks)]
    assert sorted(done) == list(range(tasks))


def test_a_team_can_be_given_work_many_times() -> None:
    with WorkerTeam(3) as team:
        for round_ in range(5):
            assert team.map(lambda task: task + 1, range(round_)) == list(range(1, round_ + 1))


@pytest.mark.parametrize("workers", [2, 8, 100])
def test_no_more_threads_run_than_workers_or_eight(workers: int) -> None:
    names = {threading.current_thread().name}
    pause = threading.Event()

    def work(task: int) -> None:
        names.add(threading.current_thread().name)
        pause.wait(0.002)  # lets the other threads take their share

    run(work, range(60), workers)
    assert len(names) <= min(workers, 8)


def test_a_teams_own_threads_end_with_it() -> None:
    with WorkerTeam(4) as team:
        team.map(lambda task: task, range(10))
    assert not [t for t in threading.enumerate() if t.name.startswith("topk_np")]


def test_an_executor_that_was_given_stays_open() -> None:
    with ThreadPoolExecutor(1) as pool:
        run(lambda task: task, range(3), pool)
        assert pool.submit(lambda: 5).result() == 5


def test_rows_of_scratch_do_not_compete_for_the_same_places_of_a_cache() -> None:
    """That is what a multiple of `same_place` bytes between them would do."""
    for columns in (1, 1024, 1040, 2048):
        rows = product(3, columns, {})
        assert rows.shape == (1, 3, columns)
        assert rows.strides[1] % tuning.current.same_place
        assert rows.strides[2] == 4


def test_scratch_is_used_again_for_products_of_the_same_name_alone() -> None:
    scratch: dict[str, np.ndarray] = {}
    first = product(3, 4, scratch)
    again = product(2, 5, scratch)
    assert np.shares_memory(first, again)
    assert not np.shares_memory(first, product(3, 4, scratch, name="linear"))
    assert not np.shares_memory(again, product(20, 5, scratch))
    assert product(20, 5, scratch, dtype=np.float64).dtype == np.float64


def product(
    rows: int, columns: int, scratch: Any, *, name: str = "scores", dtype: Any = np.float32
) -> np.ndarray:
    """The scores of one head in memory of the calling thread."""
    query, key = np.ones((1, rows, 2), dtype), np.ones((1, columns, 2), dtype)
    scores: np.ndarray = engine(np).product(query, key, 0.5, scratch, name)
    assert (scores == 1).all()
    return scores


def test_each_thread_has_scratch_of_its_own() -> None:
    team = WorkerTeam(2)
    mine = team.scratch
    assert team.scratch is mine
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(lambda: team.scratch).result()
    assert others is not mine


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
    """Even a call made on the pool's own only thread."""
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
    first, second = WorkerTeam(1), WorkerTeam(1)
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
    run(lambda task: np.log(one - 1) - one / 0 + np.exp(1e6 * one), range(4), workers)


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


def test_a_call_from_any_thread_gives_the_bits_of_the_main_thread() -> None:
    x = np.random.default_rng(0).standard_normal((2, 512, 32)).astype(np.float32)
    expected = topk_np.topk_attention(x, x, x, k=8)
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(topk_np.topk_attention, x, x, x, k=8).result()
    assert (elsewhere == expected).all()


def test_a_short_problem_runs_in_the_thread_that_asks() -> None:
    threads = set()

    def mask(i: np.ndarray, j: np.ndarray) -> Any:
        threads.add(threading.get_ident())
        return i >= j

    x = np.ones((8, 40, 4))
    topk_np.topk_attention(x, x, x, k=2, mask=mask, chunk_size=1, workers=4)
    assert threads == {threading.get_ident()}


def test_numpy_gets_the_threads_that_are_asked_for_and_other_libraries_one(xp: Backend) -> None:
    long, short = (xp.asarray(np.ones((8, length, 4))) for length in (256, 16))
    for x, threads in ((long, 3 if xp.name == "numpy" else 1), (short, 1)):
        schedule = schedule_call(attention_call(x, x, x, (2, None, None)))
        assert schedule.threads(3) == threads


def test_teams_that_two_threads_enter_and_leave_out_of_order_put_blas_back() -> None:
    before = blas_threads()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with WorkerTeam(1):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with WorkerTeam(1):
        thread.start()
        inside.wait(10)
    held = blas_threads()
    leave.set()
    thread.join()
    assert held == {1}
    assert blas_threads() == before
