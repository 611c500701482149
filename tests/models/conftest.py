"""The tiny model as a GGUF file, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.tiny import write_gguf


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the file."""
    return write_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf")
