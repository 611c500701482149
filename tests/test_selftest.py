"""The self-test: what it finds right, what it finds wrong, and what it says without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import topk_np
from tests.backends import selected_backends
from topk_np import activations
from topk_np.cli import main
from topk_np.kernels import Selection
from topk_np.kernels import numpy as kernels
from topk_np.kernels.numpy import running
from topk_np.kernels.numpy.select import select_rows
from topk_np.selftest.command import CHECKS, Check, run_check
from topk_np.selftest.device import BACKENDS, find_device

NUMPY = find_device("numpy")


def selftest(out: Path, *arguments: str) -> int:
    return main(["selftest", "--out", str(out), *arguments])


@pytest.mark.parametrize(
    "backend", [xp.name for xp in selected_backends() if xp.name in BACKENDS] or ["numpy"]
)
def test_every_check_passes(backend: str) -> None:
    device = find_device(backend)
    for name in CHECKS:
        assert run_check(name, device, cases=3, seed=1).wrong == (), name


def test_large_problems_are_right_where_they_are_as_large_as_on_a_fast_device() -> None:
    fast = replace(NUMPY, fast=True)
    for name in ("large.attention", "large.feed_forward"):
        assert run_check(name, fast, cases=3, seed=2).wrong == (), name


def test_it_reports_on_numpy_and_saves_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert selftest(out, "--backend", "numpy", "--cases", "1", "--repeats", "1") == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].startswith(f"PASSED: {len(CHECKS)} checks, {len(CHECKS)} cases")
    assert f"topk np {topk_np.__version__}" in shown.splitlines()[0]
    found = json.loads(out.read_text())
    assert found["passed"] is True
    assert [check["name"] for check in found["checks"]] == list(CHECKS)
    assert found["timings"][0]["seconds"].keys() == {"topk_np", "argpartition", "argsort"}
    assert found["device"]["numpy"] == np.__version__


Faulty = Callable[[pytest.MonkeyPatch], None]


def last_among_equals(patch: pytest.MonkeyPatch) -> None:
    def backwards(right: Callable[..., Any]) -> Callable[..., Any]:
        def select(scores: Any, k: int) -> Any:
            values, indices = right(scores[..., ::-1], k)
            columns = scores.shape[-1]
            # Ascending again, with unused slots at the end.
            order = np.argsort(np.where(indices < 0, columns, columns - 1 - indices), axis=-1)
            values, indices = (np.take_along_axis(a, order, -1) for a in (values, indices))
            indices = np.where(indices < 0, -1, columns - 1 - indices).astype(indices.dtype)
            return Selection(values, indices)

        return select

    patch.setattr(kernels, "select", backwards(kernels.select))
    patch.setattr(running, "select_rows", backwards(select_rows))


def windows_that_end_a_key_later(patch: pytest.MonkeyPatch) -> None:
    right = kernels.hide_outside

    def hide_outside(scores: Any, first: Any, last: Any) -> Any:
        return right(scores, first, last + 1)

    patch.setattr(kernels, "hide_outside", hide_outside)


def scatter_without_the_last_slot(patch: pytest.MonkeyPatch) -> None:
    right = kernels.scatter_matmul

    def scatter_matmul(weights: Any, *more: Any, **options: Any) -> Any:
        weights = weights.copy()
        weights[..., -1:] = 0
        return right(weights, *more, **options)

    patch.setattr(kernels, "scatter_matmul", scatter_matmul)


def nan_times_zero(patch: pytest.MonkeyPatch) -> None:
    def gather_matmul(weights: Any, pattern: Any, values: Any) -> Any:
        return pattern.written(weights) @ values

    patch.setattr(kernels, "gather_matmul", gather_matmul)


def silu_of_another_slope(patch: pytest.MonkeyPatch) -> None:
    table = activations.ACTIVATIONS
    right = table["silu"]

    def value(scores: Any, ops: Any = None) -> Any:
        return right.value(scores, ops) * (1.01 if scores.dtype == np.float32 else 1)

    patch.setitem(table, "silu", right._replace(value=value))


@pytest.mark.parametrize(
    ("plant", "caught_by"),
    [
        (last_among_equals, {"top_k.ties", "topk_ffn.ties"}),
        (windows_that_end_a_key_later, {"large.attention"}),
        (
            scatter_without_the_last_slot,
            {"topk_attention.gradients_masked_rows", "topk_ffn.gradients"},
        ),
        (nan_times_zero, {"topk_attention.masked_nan"}),
        (silu_of_another_slope, {"topk_ffn.gradients_together", "large.feed_forward"}),
    ],
)
def test_a_planted_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Faulty, caught_by: set[str]
) -> None:
    plant(monkeypatch)
    findings = [run_check(name, NUMPY, cases=15, seed=0) for name in sorted(caught_by)]
    assert caught_by == {finding.name for finding in findings if finding.wrong}


def test_a_fault_is_shown_and_gives_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*case: Any) -> float:
        raise ZeroDivisionError("of\n1")

    for name in CHECKS.keys() - {"top_k.ties", "large.crowds"}:
        monkeypatch.delitem(CHECKS, name)
    monkeypatch.setattr("topk_np.selftest.command.SHOWN", 1)
    monkeypatch.setitem(CHECKS, "top_k.ties", Check("Nothing works.", broken))
    out = tmp_path / "found.json"
    arguments = ("--backend", "numpy", "--cases", "5", "--repeats", "0")
    assert selftest(out, *arguments) == 1
    shown = capsys.readouterr().out
    assert "float16: ZeroDivisionError: of 1\n" in shown
    assert "and 2 more" in shown
    assert shown.splitlines()[-1] == "FAILED: top_k.ties."
    assert json.loads(out.read_text())["passed"] is False


def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error of use."""
    assert selftest(tmp_path / "found.json") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err.rstrip("\n")


def test_without_a_gpu_there_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    monkeypatch.setattr("topk_np.selftest.device.why_no_gpu", lambda: "CuPy finds no GPU")
    assert fails(tmp_path, capsys) == "topk_np selftest: error: CuPy finds no GPU"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModuleNotFoundError("No module named 'cupy'", name="cupy"), "the package cupy is missing"),
        (
            ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"),
            "CuPy cannot be imported: No module named 'fastrlock'",
        ),
        (ImportError("libcuda.so.1:\nnot found"), "CuPy cannot be imported: libcuda.so.1: not"),
    ],
)
def test_without_cupy_there_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: ImportError,
    line: str,
) -> None:
    def import_module(name: str) -> Any:
        raise error

    monkeypatch.setattr("topk_np.selftest.device.importlib.import_module", import_module)
    assert line in fails(tmp_path, capsys)


def test_a_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in CHECKS.keys() - {"top_k.ties"}:
        monkeypatch.delitem(CHECKS, name)
    out = tmp_path / "missing" / "found.json"
    assert selftest(out, "--backend", "numpy", "--cases", "1", "--repeats", "0") == 2
    assert f"error: --out {out}: No such file" in capsys.readouterr().err
