"""``python -m topk_np check``: what it tries, prints and returns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import topk_np
from topk_np.cli import main

MODULE = """
import sys

import numpy as np


def attention(query, key, value, **anything):
    assert not anything
    scores = query @ key.mT / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


def masked(query, key, value, mask=True):
    return attention(query, key, value)


def needs_more(query, key, value, secret):
    return attention(query, key, value)


def exits(query, key, value):
    sys.exit(0)


number = 3
"""
SCRIPT = "import sys; sys.exit(0)"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine_to_check.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "script_to_check.py").write_text(SCRIPT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine_to_check", raising=False)
    return "mine_to_check"


def checks(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code: Any = main(["check", *arguments])
    shown = capsys.readouterr()
    assert bool(shown.err) == (code == 2)
    return code, shown.out + shown.err


def test_it_exits_with_0_when_no_property_failed(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ["--only", "values", "mask", "kind", "--examples", "10"]
    code, shown = checks(capsys, f"{module}:attention", *only)
    assert code == 0
    assert "passed         values" in shown
    assert "not applicable mask" in shown  # **anything counts for nothing
    assert "PASSED (2 passed, 0 failed, 1 not applicable)" in shown


def test_it_exits_with_1_when_one_did_and_shows_the_smallest_example(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = checks(capsys, f"{module}:masked", "--only", "values", "mask")
    assert code == 1
    assert "FAILED         mask" in shown
    assert "the output differs by" in shown
    assert "AttentionProblem(query=np.array([[" in shown
    assert "FAILED: mask (1 passed, 1 failed, 0 not applicable)" in shown


def test_options_that_are_listed_are_tried_too(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ["--only", "softcap", "--examples", "5"]
    assert checks(capsys, f"{module}:attention", *only)[0] == 0
    code, shown = checks(capsys, f"{module}:attention", *only, "--options", "softcap")
    assert code == 1
    assert "raised AssertionError" in shown


def test_the_backward_pass_beside_a_function_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    only = ["--only", "gradients", "--examples", "5"]
    code, shown = checks(capsys, "topk_np:topk_attention", *only)
    assert (code, "1 passed" in shown) == (0, True)
    code, shown = checks(capsys, "topk_np.attention:topk_attention_fwd", *only)
    assert code == 2


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("nonsense", [], "expected MODULE:FUNCTION, got 'nonsense'"),
        ("no.such.module:f", [], "cannot import no.such.module: ModuleNotFoundError"),
        ("{}:absent", [], "has no function absent"),
        ("{}:number", [], "has no function number"),
        ("{}:needs_more", [], "raised TypeError"),
        ("{}:exits", [], "raised SystemExit: 0"),
        ("script_to_check:f", [], "cannot import script_to_check: SystemExit: 0"),
        ("{}:attention", ["--options", "colour"], "options must be among k, mask"),
        ("{}:attention", ["--only", "beauty"], "only must be among values"),
    ],
)
def test_it_exits_with_2_when_it_cannot_run(
    module: str,
    capsys: pytest.CaptureFixture[str],
    target: str,
    more: list[str],
    message: str,
) -> None:
    code, shown = checks(capsys, target.format(module), *more)
    assert code == 2
    assert message in shown
    assert shown.startswith("topk_np check: error: ")
    assert shown.count("\n") == 1


def test_it_runs_as_a_program_from_any_folder(module: str) -> None:
    command = [sys.executable, "-m", "topk_np", "check", f"{module}:attention", "--only", "values"]
    package = str(Path(topk_np.__file__).parents[1])
    done = subprocess.run(
        [*command, "--examples", "5"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": package},
    )
    assert done.returncode == 0, done.stderr
    assert "PASSED (1 passed" in done.stdout


def test_a_missing_hypothesis_is_named_with_its_extra() -> None:
    code = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(name, *rest):\n"
        "        if name == 'hypothesis': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Without)\n"
        "from topk_np.cli import main\n"
        "sys.exit(main(['check', 'topk_np:topk_attention']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "the package hypothesis is missing: pip install 'topk_np[testing]'" in done.stderr
