"""Pages of the documentation that are made from the code are as the code makes them."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_options_is_that_of_the_code() -> None:
    made = runpy.run_path(str(DOCS / "tables" / "options.py"))
    page = (DOCS / "options.md").read_text(encoding="utf-8")
    assert page == made["page"](), "make it again: python docs/tables/options.py"
