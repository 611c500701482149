"""Helpers that programs share: a process of one's own, timing in turns, files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from topk_np import _process
from topk_np._process import (
    RunFailed,
    UserError,
    interleave,
    make_folder,
    peak_memory,
    ratio,
    run_alone,
    write_whole,
)

MEBI = 2**20


def grow(mebi: int) -> int:
    """Hold so much for a moment, and print something."""
    print("a line on stdout")
    return int(np.ones(mebi * MEBI, np.uint8).sum())


def fail(number: int) -> None:
    """An error of two lines."""
    raise ValueError(f"not\n{number}")


def nothing(name: str) -> None:
    """A tick."""


def test_a_run_alone_returns_the_result_and_the_peak_of_its_own_process() -> None:
    large = np.ones(128 * MEBI, np.uint8)  # a peak of this process, which is not that of the others
    small, peaks = zip(*(run_alone(grow, mebi) for mebi in (1, 64)), strict=True)
    del large
    assert small == (MEBI, 64 * MEBI)
    assert 60 * MEBI < peaks[1] - peaks[0] < 68 * MEBI
    assert peaks[0] < 128 * MEBI


def test_a_run_that_fails_says_why_in_one_line() -> None:
    with pytest.raises(RunFailed, match=r"^failed: 3$"):
        run_alone(fail, 3)
    with pytest.raises(UserError, match=r"^failed: TypeError: fail\(\) missing"):
        run_alone(fail)


def test_a_run_that_is_killed_gives_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess([], -9, b"", b"")

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(RunFailed, match=r"^failed: exit code -9$"):
        run_alone(grow, 1)


def test_a_run_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process, "START", 0)
    with pytest.raises(RunFailed, match=r"^took longer than 0.001 s$"):
        run_alone(grow, 1, limit=0.001)


def test_the_peak_is_known_on_other_systems_too(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = peak_memory()
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert peak_memory() >= 0.9 * peak


def test_rounds_take_turns_and_the_first_is_not_counted() -> None:
    order: list[str] = []
    seconds = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, print)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_quick_rounds_are_as_many_as_take_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"a": lambda: None}
    assert len(interleave(runs, 2, nothing, least=60)["a"]) == _process.MOST_ROUNDS
    monkeypatch.setattr(_process, "MOST_ROUNDS", 3)
    assert len(interleave(runs, 2, nothing, least=60)["a"]) == 3
    assert len(interleave(runs, 5, nothing, least=60)["a"]) == 5


def test_slow_rounds_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topk_np._process.SLOW_ROUND", -1)
    assert len(interleave({"a": lambda: None}, 9, nothing)["a"]) == 3


def test_a_ratio_is_the_median_over_pairs_of_one_round() -> None:
    assert ratio([1.0, 2.0, 9.0], [2.0, 2.0, 3.0]) == 1.0


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_named_with_its_option(tmp_path: Path) -> None:
    make_folder("--out", tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--out .*/file: File exists$"):
        make_folder("--out", tmp_path / "file")
