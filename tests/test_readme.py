"""The code in the README runs, in the order in which it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import ROOT, run_code


def test_every_python_block_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_code(ROOT / "README.md", {"__name__": "readme"})
