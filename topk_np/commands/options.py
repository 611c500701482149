"""Helpers to declare the options of commands."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn, TypeAlias


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong use in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line, without the usage that argparse would put before it."""
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
    """A parser of learning rates, which are finite and not negative."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be finite and at least 0, got {text}")
    return number
