"""The tiny Llama against transformers, which `make peers` installs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.golden import assert_near
from tests.models.tiny import EXPECTED, MODEL, write_gguf
from topk_np.models import load_model
from topk_np.models.llama import forward, logits

pytest.importorskip("transformers", reason="transformers is not installed; `make peers` does it")
peer: Any = pytest.importorskip("topk_np.bench.torch_peers")
TOKENS = EXPECTED["input_ids"][0]


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "untied"])
def test_transformers_computes_the_same(kind: str, tmp_path: Path) -> None:
    model = load_model(write_gguf(tmp_path / "tiny.gguf")) if kind == "gguf" else MODEL
    if kind == "untied":
        head = np.ascontiguousarray(model.params["embedding"][::-1])
        model = replace(model, params={**model.params, "head": head})
    theirs = peer.Transformers(model, 1)
    hidden = forward(model, TOKENS)
    assert_near(theirs.forward(TOKENS), hidden)
    assert_near(theirs.logits(TOKENS), logits(model, hidden))
