"""The code of the page on fine-tuning, on the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.tiny import MODEL, write_gguf
from tests.pages import DOCS, run_code
from topk_np.models.llama import loss_fwd


def test_the_code_of_the_page_lowers_the_loss_and_brings_the_model_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 90, (2, 9))
    page: dict[str, Any] = {"path": write_gguf(tmp_path / "tiny.gguf"), "batches": [tokens] * 12}
    run_code(DOCS / "howto" / "finetune.md", page)
    before, after = (float(loss_fwd(model, tokens)[0]) for model in (MODEL, page["tuned"]))
    assert after < before - 0.05
