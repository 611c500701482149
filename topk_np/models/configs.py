"""Fields of a checkpoint's ``config.json``: what has to be there, and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topk_np._namespace import check_integer


def read_config(folder: Path, /) -> dict[str, Any]:
    """The ``config.json`` of a folder."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def need(config: Mapping[str, Any], name: str, /) -> Any:
    """A field that has to be there."""
    if config.get(name) is None:
        raise ValueError(f"the config has no {name}")
    return config[name]


def number(config: Mapping[str, Any], name: str, /) -> int:
    """A positive integer that has to be there."""
    return check_integer(f"{name} of the config", need(config, name), least=1)


def check(name: str, got: object, *allowed: object) -> None:
    """Check that a field is one of what can be computed here."""
    if got not in allowed:
        wanted = " or ".join(map(repr, allowed))
        raise ValueError(f"{name} must be {wanted} for this reader, got {got!r}")


def check_groups(heads: int, groups: int) -> None:
    """Check that query heads can share the key heads."""
    if heads % groups:
        raise ValueError(f"the key heads must divide the {heads} query heads, got {groups}")


ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
"""Ours, by those of configs."""
