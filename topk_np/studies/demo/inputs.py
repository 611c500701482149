"""What the demo needs, checked before anything slow begins: text, model, a place for the plot."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from topk_np._process import UserError
from topk_np.models.checkpoint import read_gguf
from topk_np.models.fetch import fetch
from topk_np.models.llama_blocks import Llama
from topk_np.studies.texts import documentation

MOST_CHARACTERS = 64  # read at most so many for each token that is wanted


def check_plot(path: Path) -> None:
    """Check that a plot can be saved at `path`."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise UserError(f"--plot must end in one of .{', .'.join(sorted(kinds))}, got {path}")
    if not path.parent.is_dir():
        raise UserError(f"--plot {path}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--plot {path} cannot be written")


def read_text(path: Path | None, tokens: int) -> tuple[str, str]:
    """Return what the text is called, and enough of it for so many tokens."""
    if path is None:
        return "Python's documentation", documentation()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(tokens * MOST_CHARACTERS)
    except OSError as error:
        raise UserError(f"--text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--text {path} is not UTF-8 text") from error
    if "\0" in text:
        raise UserError(f"--text {path} is not text: it has zero bytes")
    if not text.strip():
        raise UserError(f"--text {path} is empty")
    return path.name, text


def load_model(path: Path | None) -> tuple[str, Llama]:
    """Read the GGUF file at `path`, or fetch SmolLM2; return the model's name and the model."""
    if path is None:
        return "SmolLM2-135M-Instruct", read_gguf(fetch("smollm2"))
    try:
        return path.stem, read_gguf(path)
    except OSError as error:
        raise UserError(f"--weights {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--weights: {error}") from error


def encode(model: Llama, text: str, tokens: int, source: str) -> np.ndarray:
    """The first `tokens` token ids of the text."""
    context = model.config.context
    if tokens > context:
        raise UserError(f"--tokens must be at most {context}, the model's limit, got {tokens}")
    try:
        ids = model.tokenizer.encode(text)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    if len(ids) < tokens:
        raise UserError(
            f"{source} is too short: it has {len(ids)} tokens, fewer than --tokens {tokens}"
        )
    return ids[:tokens]
