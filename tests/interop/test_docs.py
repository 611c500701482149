"""The code of docs/howto/interop.md runs, that of each framework by itself."""

from __future__ import annotations

import re

import pytest

from tests.pages import DOCS, run_code

PAGE = DOCS / "howto" / "interop.md"


@pytest.mark.parametrize(("heading", "needs"), [("PyTorch", "torch"), ("JAX", "jax")])
def test_the_code_of_a_section_runs(heading: str, needs: str) -> None:
    pytest.importorskip(needs, reason=f"{heading} is not installed; `make peers` installs it")
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert found
    run_code(PAGE, {}, start=found.start(1), end=found.end(1))
