"""The pages that are read: README, documentation and notebooks, and the code in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = ROOT / "notebooks"
PAGES = sorted(
    path
    for path in (ROOT / "README.md", *DOCS.rglob("*.md"), *NOTEBOOKS.glob("*.md"))
    # docs/tutorial is the folder of the notebooks; the others are made by Sphinx.
    if not {"_build", "generated", "tutorial"} & set(path.relative_to(ROOT).parts)
)


def run_code(path: Path, names: dict[str, Any], *, start: int = 0, end: int | None = None) -> None:
    """Run the Python code of a page, or a part of it, in the order in which it is read."""
    text = path.read_text(encoding="utf-8")
    python = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    blocks = list(python.finditer(text, start, len(text) if end is None else end))
    assert blocks, f"{path.name} has no code"
    for block in blocks:
        # Lines keep their numbers in the page, so that a traceback points there.
        padding = "\n" * text.count("\n", 0, block.start(1))
        # As in a file of the reader's: without the __future__ imports of this one.
        exec(compile(padding + block[1], str(path), "exec", dont_inherit=True), names)


def shown(path: Path) -> list[str]:
    """The lines that a page says its code prints."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]
