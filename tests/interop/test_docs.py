"""The code of docs/interop.md runs, that of each framework by itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"


@pytest.mark.parametrize(("heading", "needs"), [("PyTorch", "torch"), ("JAX", "jax")])
def test_the_code_of_a_section_runs(heading: str, needs: str) -> None:
    pytest.importorskip(needs, reason=f"{heading} is not installed; `make peers` installs it")
    text = PAGE.read_text(encoding="utf-8")
    start, end = re.search(rf"^## {heading}$(.*?)^## ", text, re.M | re.S).span(1)  # type: ignore[union-attr]
    blocks = list(re.compile(r"^```python\n(.*?)^```$", re.M | re.S).finditer(text, start, end))
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        # Lines keep their numbers in the page, so that a traceback points there.
        padding = "\n" * text.count("\n", 0, block.start(1))
        exec(compile(padding + block[1], str(PAGE), "exec"), names)
