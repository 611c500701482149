"""The code of docs/howto/verify.md runs, in the order in which it is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pages import DOCS, run_code, shown

PAGE = DOCS / "howto" / "verify.md"


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "verify"}
    run_code(PAGE, names)
    printed = capsys.readouterr().out
    assert all(line in printed for line in shown(PAGE))
    problem = names["report"]["mask"].example
    assert (problem.queries, problem.keys) == (1, 2)
