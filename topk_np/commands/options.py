"""What the commands share: how options are read, and how a command says that it cannot run."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias


class CommandError(Exception):
    """What the user should be told in one line; the exit code is 2."""


class Parser(argparse.ArgumentParser):
    """A parser that tells an error of use in one line."""

    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse would put before it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def at_least(least: int) -> Callable[[str], int]:
    """A parser of integers that refuses smaller ones."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        return number

    return parse


def rate(text: str) -> float:
    """A parser of learning rates: finite, and not negative."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be finite and at least 0, got {text}")
    return number


def read(options: argparse.Namespace) -> dict[str, Any]:
    """What the parser read, by the names of the command's own arguments."""
    return {name: value for name, value in vars(options).items() if name not in ("name", "run")}
