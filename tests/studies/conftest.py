"""Texts that the tiny model knows, instead of those that are downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.tiny import write_gguf
from topk_np.studies import reading


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the tiny Llama."""
    return write_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf")


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two made-up sources of texts."""
    sources = {
        "paths": lambda: "The path of the theme. " * 60,
        "trees": lambda: "A tree is a graph without circles. " * 40,
    }
    monkeypatch.setattr(reading, "SOURCES", sources)
