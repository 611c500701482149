"""Print the oldest versions that pyproject.toml allows, as constraints of pip: make test-oldest."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def constraints(project: Path = PROJECT) -> list[str]:
    """The lower bound of each requirement, of the package and all its extras."""
    fields = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = itertools.chain.from_iterable(fields["optional-dependencies"].values())
    found = (
        re.fullmatch(r"([\w.-]+)(?:\[.+\])?>=([\w.]+)", text)
        for text in (*fields["dependencies"], *extras)
    )
    return sorted({f"{bound[1]}=={bound[2]}" for bound in found if bound})


if __name__ == "__main__":
    print(*constraints(), sep="\n")
