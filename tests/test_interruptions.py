"""An error on any line of ours, in any thread, comes through and leaves all as it was."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import topk_np
from tests.oracles import assert_same_bits
from tests.test_workers import blas_threads, two_blas_threads
from topk_np.schedule.threads import WorkerTeam, _BlasGuard, _guard, _set_threads

pytestmark = pytest.mark.usefixtures("tiny_plans")  # small problems have work for every thread

Line = tuple[CodeType, int]
Trace = Callable[[CodeType, int], None]

PACKAGE = str(Path(topk_np.__file__).parent)
RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = RNG.standard_normal((3, 2, 10, 4))
GATE = RNG.standard_normal((10, 4))
BIAS = RNG.standard_normal((10, 10))
FIRST: dict[str, Any] = {"is_causal": True, "query_offset": 3}

# The lines that hold BLAS to one thread and that let go: they make no arrays, and who is
# interrupted there, as Ctrl-C may do, is put right by the next call.
GUARD = {
    function.__code__
    for function in (
        WorkerTeam.__enter__,
        WorkerTeam.__exit__,
        _BlasGuard.enter,
        _BlasGuard.leave,
        _set_threads,
    )
}


def both_ways(name: str, arrays: tuple[Any, ...], workers: int, **options: Any) -> list[np.ndarray]:
    """The output of a function and its gradients."""
    fwd, bwd = (getattr(topk_np, f"{name}_{way}") for way in ("fwd", "bwd"))
    out, residuals = fwd(*arrays, workers=workers, **options)
    return [out, *(grad for grad in bwd(residuals, np.ones_like(out)) if grad is not None)]


CALLS: dict[str, Callable[[int], list[np.ndarray]]] = {
    "topk": partial(both_ways, "topk_attention", (QUERY, KEY, VALUE), k=3),
    "options": partial(
        both_ways,
        "topk_attention",
        (QUERY, KEY[:1], VALUE[:1]),
        **FIRST,
        p=0.9,
        max_k=4,
        always_keep=(1, 1),
        mask=BIAS < 1,
        bias=BIAS,
        dropout=(0.5, 1),
        softcap=3.0,
        window=(5, 0),
    ),
    "half": partial(
        both_ways,
        "topk_attention",
        tuple(array.astype(np.float16) for array in (QUERY, KEY, VALUE)),
        **FIRST,
        k=3,
        bias=topk_np.T5Bias(BIAS[:, :2].astype(np.float16), max_distance=8),
    ),
    "dense": partial(both_ways, "dense_attention", (QUERY, KEY, VALUE), chunk_size=3, **FIRST),
    "ffn": partial(
        both_ways,
        "topk_ffn",
        (QUERY, KEY[0], VALUE[0]),
        k=3,
        gate=GATE,
        activation="gelu",
        select="activation",
        key_bias=GATE[:, 0],
        value_bias=GATE[0],
    ),
    "dense ffn": partial(both_ways, "dense_ffn", (QUERY, KEY[0], VALUE[0]), chunk_size=3),
}


@contextmanager
def every_line(trace: Trace, only: CodeType | None = None) -> Iterator[None]:
    """Call `trace` with each line of ours, or of one function, before it runs, in every thread."""

    def local(frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            trace(frame.f_code, frame.f_lineno)
        return local

    def enter(frame: Any, event: str, argument: Any) -> Any:
        code = frame.f_code
        ours = code is only if only is not None else code.co_filename.startswith(PACKAGE)
        return local if ours else None

    before = sys.gettrace()
    threading.settrace(enter)
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
        threading.settrace(None)


def lines_of(call: Callable[[], Any]) -> list[Line]:
    """The lines that run, in order."""
    found: dict[Line, None] = {}
    with every_line(lambda *line: found.setdefault(line)):
        call()
    return list(found)


def call_failing_at(line: Line, error: BaseException, call: Callable[[], Any]) -> None:
    """Make a call in which a line raises an error, each time that it runs."""

    def trace(*now: Any) -> None:
        if now == line:
            raise error

    with every_line(trace, only=line[0]):
        call()


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("topk_np")]


def assert_nothing_is_left(at_the_guard: bool) -> None:
    """Threads have ended and BLAS is as before; if the guard itself failed, after another call."""
    if at_the_guard:
        gc.collect()
        topk_np.topk_attention(QUERY, KEY, VALUE, k=1, workers=1)
        for _ in range(1000):  # threads of a pool that nobody refers to end by themselves
            if not own_threads():
                break
            time.sleep(0.001)
    assert blas_threads() == {2}
    assert own_threads() == []


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("error", "workers"),
    [(MemoryError("full"), 1), (KeyboardInterrupt(), 3)],
    ids=["memory", "key"],
)
def test_an_error_on_any_line_comes_through_and_leaves_all_as_it_was(
    name: str, error: BaseException, workers: int
) -> None:
    call = CALLS[name]
    expected = call(1)
    lines = lines_of(lambda: call(workers))
    assert len(lines) > 200
    if name != "topk":  # what other calls run as well is the first one's matter
        known = set(lines_of(lambda: CALLS["topk"](workers)))
        lines = [line for line in lines if line not in known]
    if isinstance(error, KeyboardInterrupt) and settings().max_examples < 1000:
        lines = lines[::3]  # all of them in the thorough profile
    with two_blas_threads():
        for line in lines:
            with pytest.raises(type(error)) as raised:
                call_failing_at(line, error, lambda: call(workers))
            assert raised.value is error
            del raised  # and with it the frames
            error.__traceback__ = error.__context__ = None
            assert_nothing_is_left(line[0] in GUARD)
    for one, other in zip(call(3), expected, strict=True):
        assert_same_bits(one, other)


# Without fork, as on Windows, no process can inherit a lock that is held.
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of the threads, since 3.12
def test_a_process_forked_while_others_compute_starts_afresh() -> None:
    """Its lock is free and its BLAS has the threads that it had before those computed."""
    with two_blas_threads(), ThreadPoolExecutor(1) as pool:
        inside, leave = threading.Event(), threading.Event()

        def compute() -> None:
            with WorkerTeam(1), _guard._lock:
                inside.set()
                leave.wait(60)

        computing = pool.submit(compute)
        inside.wait(60)
        child = os.fork()
        if child == 0:
            try:
                right = blas_threads() == {2}
                topk_np.topk_attention(QUERY, KEY, VALUE, k=1, workers=1)
                os._exit(0 if right and blas_threads() == {2} else 1)
            finally:
                os._exit(2)
        for _ in range(6000):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            time.sleep(0.01)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        leave.set()
        computing.result()
        assert os.waitstatus_to_exitcode(status) == 0
