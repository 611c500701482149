"""
What the paper measured: UnifiedQA with top-k feed-forward layers, without training.

Gupta, Dar, Goodman, Ciprut and Berant, *Memory-efficient Transformers via Top-k Attention*, 2021,
section 4.3 and its appendix, arXiv:2106.06899.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

from topk_np._process import markdown

FILE = "unifiedqa_zero_shot.csv"


@dataclass(frozen=True)
class Published:
    """A row of the paper's table."""

    model: str
    dataset: str
    d_ff: int
    k: int
    """Equal to `d_ff` for the dense model."""
    exact_match: float
    f1: float


def published() -> list[Published]:
    """All rows."""
    with (files("topk_np.qa") / FILE).open(encoding="utf-8") as file:
        return [
            Published(
                row["model"],
                row["dataset"],
                int(row["d_ff"]),
                int(row["k"]),
                float(row["exact_match"]),
                float(row["f1"]),
            )
            for row in csv.DictReader(file)
        ]


def datasets() -> list[str]:
    """Names of the datasets, as UnifiedQA's folders have them."""
    return sorted({row.dataset for row in published()})


def published_table(dataset: str | None = None, /) -> str:
    """Exact match and F1 by k: of one dataset, or of all, model by model."""
    rows = [row for row in published() if dataset in (None, row.dataset)]
    tables = []
    for model, width in dict.fromkeys((row.model, row.d_ff) for row in rows):
        own = [row for row in rows if row.model == model]
        ks = list(dict.fromkeys(row.k for row in own))
        head = [model, *("dense" if k == width else f"k = {k}" for k in ks)]
        cells = {(row.dataset, row.k): f"{row.exact_match} / {row.f1}" for row in own}
        names = dict.fromkeys(row.dataset for row in own)
        body = [[name, *(cells.get((name, k), "-") for k in ks)] for name in names]
        tables.append(markdown(head, body))
    return "\n\n".join(tables)
