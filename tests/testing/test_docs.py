"""The code of docs/verify.md runs, in the order in which it is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "verify.md"


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S))
    assert blocks
    names: dict[str, Any] = {"__name__": "verify"}
    for block in blocks:
        # Lines keep their numbers in the page, so that a traceback points there.
        padding = "\n" * text.count("\n", 0, block.start(1))
        exec(compile(padding + block[1], str(PAGE), "exec"), names)
    (shown,) = re.findall(r"^```text\n(.*?)^```$", text, re.M | re.S)
    printed = capsys.readouterr().out
    assert all(line in printed for line in shown.splitlines())
    problem = names["report"]["mask"].example
    assert (problem.queries, problem.keys) == (1, 2)
