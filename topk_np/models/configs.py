"""Fields of a checkpoint's ``config.json``: what has to be there, and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from topk_np._namespace import check_integer, check_number


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


def need(config: Mapping[str, Any], name: str, default: Any = None, /) -> Any:
    """A field that has to be there, unless there is a default."""
    value = default if config.get(name) is None else config[name]
    if value is None:
        raise ValueError(f"the config has no {name}")
    return value


def number(config: Mapping[str, Any], name: str, default: int | None = None, /) -> int:
    """A positive integer."""
    return check_integer(f"{name} of the config", need(config, name, default), least=1)


def positive(config: Mapping[str, Any], name: str, default: float | None = None, /) -> float:
    """A positive number."""
    value = check_number(f"{name} of the config", need(config, name, default))
    if value <= 0:
        raise ValueError(f"{name} of the config must be positive, got {value}")
    return value


def table(config: Mapping[str, Any], name: str, /) -> Mapping[str, Any]:
    """The fields within a field, none where it is missing or empty."""
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} of the config must be a JSON object, got {value!r}")
    return value


def layers(config: Mapping[str, Any], name: str, tensors: Collection[str], /) -> int:
    """
    A number of layers that has to be there, cut short where it cannot be right.

    Each layer has tensors, so with one more than there are tensors the first that is missing is
    found as well as with a billion.
    """
    return min(number(config, name), len(tensors) + 1)


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
