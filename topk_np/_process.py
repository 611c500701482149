"""Helpers that programs share: errors for the user, memory, timing, the machine, files, tables."""

from __future__ import annotations

import os
import pickle
import platform
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_info

from topk_np.schedule.threads import WorkerTeam, available_cores

Out = TypeVar("Out")
Machine = dict[str, Any]
Tick = Callable[[str], object]
"""Called with the name of what runs next."""

MEBI, GIBI = 2**20, 2**30
START = 60  # seconds that a new process may take to start and import
SLOW_ROUND = 60.0  # seconds; when one round takes longer, `FEWEST_ROUNDS` are enough
FEWEST_ROUNDS = 3
MOST_ROUNDS = 300  # of quick ones
BLAS_SETTINGS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class UserError(Exception):
    """An error to be told in one line: a command prints the message and returns 2."""


class RunFailed(UserError):
    """A run in a process of its own that failed or took too long; the message says which."""


def one_thread() -> WorkerTeam:
    """A context in which BLAS has one thread, so that sums are the same on any number of cores."""
    return WorkerTeam(1)


def peak_memory() -> int:
    """The most bytes that this process has held in memory at once."""
    # Linux hands the ru_maxrss of a parent down to its child: a large parent would hide the peak.
    status = Path("/proc/self/status")
    if status.exists():
        words = status.read_text().split()
        return int(words[words.index("VmHWM:") + 1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_seconds() -> float:
    """CPU time of this process, including the processes that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_alone(
    function: Callable[..., Out], /, *args: object, limit: float | None = None
) -> tuple[Out, int]:
    """
    Run a module's function in a new process, so that its peak of memory can be measured.

    Parameters
    ----------
    function : callable
        A function that the new process can import.
    *args : object
        Its arguments, which are pickled.
    limit : float, optional
        Seconds that it may take, besides those of starting the process.

    Returns
    -------
    object
        Its result.
    int
        The peak of the process in bytes.

    Raises
    ------
    RunFailed
        If the function raises an error, the process is killed, or the limit is passed.
    """
    import subprocess  # only now, as parts of the library import this module

    command = [sys.executable, "-c", "from topk_np._process import _serve; _serve()"]
    most = None if limit is None else limit + START
    job = pickle.dumps((function, args))
    try:
        done = subprocess.run(command, input=job, capture_output=True, timeout=most)
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"took longer than {limit:g} s") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise RunFailed(f"failed: {words[-1] if words else f'exit code {done.returncode}'}")
    found: tuple[Out, int] = pickle.loads(done.stdout)
    return found


def _serve() -> None:
    """In the new process: run what `run_alone` sent, and send back the result and the peak."""
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # what the function prints is not the answer
        function, args = pickle.load(sys.stdin.buffer)
        out = function(*args)
        pickle.dump((out, peak_memory()), answer)


def interleave(
    runs: Mapping[str, Callable[[], Any]],
    repeats: int,
    tick: Tick,
    *,
    clock: Callable[[], float] = perf_counter,
    least: float = 0.0,
) -> dict[str, list[float]]:
    """
    Time several runs in turn, so that what slows the machine slows them all.

    Parameters
    ----------
    runs : mapping of str to callable
        The runs by name; each of them runs once in a round.
    repeats : int
        Rounds, fewer if they are slow. One more comes first and is not timed: it loads, allocates
        and warms up.
    tick : callable
        Called with the name of each run before it starts.
    clock : callable, default perf_counter
        `time.process_time` counts the work of all threads instead.
    least : float, default 0
        Seconds; quick rounds are repeated until they have taken as long in all.

    Returns
    -------
    dict of str to list of float
        Seconds of each round, by the name of the run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    start = perf_counter()
    for name, run in runs.items():
        tick(name)
        run()
    if perf_counter() - start > SLOW_ROUND:
        repeats = min(repeats, FEWEST_ROUNDS)
    rounds, end = 0, perf_counter() + least
    while rounds < repeats or (rounds < MOST_ROUNDS and perf_counter() < end):
        for name, run in runs.items():
            tick(name)
            start = clock()
            results = run()
            seconds[name].append(clock() - start)
            del results  # releasing memory is not timed
        rounds += 1
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float], /) -> float:
    """The median over the rounds of ours / theirs, each pair from one round."""
    return float(np.median([one / other for one, other in zip(ours, theirs, strict=True)]))


def describe_machine() -> Machine:
    """CPU, cores, memory, versions and date, without names of hosts or folders."""
    return {
        "cpu": _cpu(),
        "cores": available_cores(),
        "memory_gib": round(total_memory() / GIBI, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        # It is loaded, as this is a part of it; an import would be one from a higher floor.
        "topk_np": sys.modules["topk_np"].__version__,
        **{package: _version(package) for package in ("numpy", "scipy", "torch")},
        "blas": _blas(),
        "blas_settings": {name: os.environ[name] for name in BLAS_SETTINGS if name in os.environ},
        "date": datetime.now(UTC).date().isoformat(),
    }


def total_memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu() -> str:
    """The CPU's model, as Linux names it where this is Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _blas() -> list[str]:
    """Each BLAS that is loaded, such as "openblas 0.3.30, SkylakeX, 2 threads"."""
    return sorted(
        {
            f"{library['internal_api']} {library['version']}, "
            f"{library.get('architecture', 'unknown architecture')}, "
            f"{library['num_threads']} threads"
            for library in threadpool_info()
            if library["user_api"] == "blas"
        }
    )


def _version(package: str) -> str | None:
    """The version that is installed, if any."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def make_folder(option: str, folder: Path, /) -> None:
    """Make the folder that an option of a command names."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {folder}: {error.strerror}") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that a reader never finds half written: the old one stays until it is whole."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], /) -> str:
    """A Markdown table that reads well on a terminal: a column of words, the others of numbers."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in (head, rule, *rows)
    )


def describe_ks(setting: Mapping[str, Any], /) -> str:
    """The k of a setting in words: ``attention_k``, ``ffn_k``, and others of `with_setting`."""
    words = []
    attention_k, ffn_k = setting.get("attention_k"), setting.get("ffn_k")
    if attention_k is not None:
        words.append(f"attention k = {attention_k:,}")
    if "dense_layers" in setting:
        layers = ", ".join(map(str, setting["dense_layers"]))
        words[-1] += f", layer {layers} dense"
    if ffn_k is not None:
        by = ", by score" if setting.get("ffn_select") == "score" else ""
        words.append(f"feed-forward k = {ffn_k:,}{by}")
    return " and ".join(words) or "dense"
