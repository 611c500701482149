"""The code of the page on training."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.pages import DOCS, run_code


def test_the_code_of_the_page_lowers_the_loss() -> None:
    rng = np.random.default_rng(0)
    batch = rng.integers(1, 16, (8, 48)), rng.integers(1, 49, 8), rng.integers(0, 10, 8)
    losses = []
    for steps in (1, 6):
        page: dict[str, Any] = {"rng": np.random.default_rng(1), "batches": [batch] * steps}
        run_code(DOCS / "training.md", page)
        losses.append(float(page["loss"]))
    assert losses[1] < losses[0] - 0.5
