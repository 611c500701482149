"""
ListOps: nested operations on lists of digits, such as ``[MAX 2 9 [MIN 4 7 ] 0 ]``, which is 9.

Sources: Nangia and Bowman, *ListOps: A Diagnostic Dataset for Latent Tree Learning*, 2018,
arXiv:1804.06028; Tay et al., *Long Range Arena*, 2021, section 2.2.1, arXiv:2011.04006, whose
published generator's settings are the preset "lra".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from topk_np._namespace import check_integer
from topk_np.tasks.examples import Examples, Task, guess_by, guess_majority, padded

__all__ = ["ListOpsSettings", "decode", "encode", "evaluate", "listops"]


def _median(digits: list[int]) -> int:
    """The middle digit; of two, their mean, rounded down."""
    ordered = sorted(digits)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": _median,
    "[SM": lambda digits: sum(digits) % 10,
}
CLOSE = "]"
TRIES = 100  # for each expression that is wanted: some settings have too few
TOKENS = ("", *map(str, range(10)), *OPERATIONS, CLOSE)  # a token is its number; "" is padding
_DIGIT, _OPERATOR, _CLOSE = 1, 11, len(TOKENS) - 1  # the first number of each kind
_FUNCTIONS = tuple(OPERATIONS.values())


@dataclass(frozen=True)
class ListOpsSettings:
    """Settings of the expressions that are drawn.

    Attributes
    ----------
    shortest, longest : int
        Tokens of an expression: digits, operators, and brackets that close.
    depth : int
        Levels of the tree, at least 2; on the last there are only digits.
    arguments : int
        The most that an operator has; at least 2.
    operator_share : float
        Probability that an argument is an expression of its own.
    """

    shortest: int
    longest: int
    depth: int
    arguments: int
    operator_share: float = 0.25

    def __post_init__(self) -> None:
        """Check that there are such expressions."""
        for name, least in (("shortest", 1), ("longest", self.shortest), ("depth", 2)):
            check_integer(name, getattr(self, name), least=least)
        check_integer("arguments", self.arguments, least=2)
        if not 0 <= self.operator_share <= 1:
            raise ValueError(f"operator_share must be from 0 to 1, got {self.operator_share}")


PRESETS = {
    "12-48": ListOpsSettings(12, 48, depth=3, arguments=6),
    "16-64": ListOpsSettings(16, 64, depth=10, arguments=5),
    "32-128": ListOpsSettings(32, 128, depth=4, arguments=10),
    "lra": ListOpsSettings(501, 1999, depth=10, arguments=10),
}


def listops(
    settings: str | ListOpsSettings = "12-48",
    *,
    train: int = 50_000,
    validation: int = 2_000,
    test: int = 2_000,
    seed: int = 0,
) -> Task:
    """
    Draw a ListOps task.

    Parameters
    ----------
    settings : str or ListOpsSettings
        One of `PRESETS`: "12-48", "16-64" and "32-128", named by their lengths, which two layers
        learn in minutes, or "lra", the Long Range Arena's.
    train, validation, test : int
        Examples of each split, at least 1; no expression comes twice.
    seed : int
        The seed that expressions are drawn from, at least 0.

    Returns
    -------
    Task
        With the baselines "majority"; "root operator", the class that goes most often with the
        first token; and "direct digits", with that and the operator's value on the digits that
        are its own arguments.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If `settings` is no preset, or a number is too small.

    Notes
    -----
    The class is the expression's value, 0 to 9. A second makes 20,000 examples of "12-48", but
    400 of "lra", nine of ten trees drawn being too short.

    Examples
    --------
    >>> from topk_np.tasks.listops import decode, listops
    >>> task = listops("12-48", train=1000, validation=10, test=100)
    >>> decode(task.test.tokens[0]), int(task.test.labels[0])
    ('[MIN [SM 8 7 2 ] 6 2 [MAX 1 8 5 ] ]', 2)
    """
    if isinstance(settings, str):
        if settings not in PRESETS:
            raise ValueError(f"settings must be one of {', '.join(PRESETS)}, got {settings!r}")
        name, settings = settings, PRESETS[settings]
    elif isinstance(settings, ListOpsSettings):
        name = f"{settings.shortest}-{settings.longest}"
    else:
        raise TypeError(
            f"settings must be a string or ListOpsSettings, got {type(settings).__name__}"
        )
    sizes = {"train": train, "validation": validation, "test": test}
    sizes = {split: check_integer(split, size, least=1) for split, size in sizes.items()}
    expressions = _distinct(settings, sum(sizes.values()), check_integer("seed", seed, least=0))
    splits, first = {}, 0
    for split, size in sizes.items():
        chosen = expressions[first : first + size]
        labels = np.array([evaluate(expression) for expression in chosen], np.int64)
        splits[split] = Examples(*padded(chosen), labels)
        first += size
    cues = {split: _cues(splits[split]) for split in ("train", "test")}
    learn, judge = splits["train"], splits["test"]
    baselines = {"majority": guess_majority(learn, judge)}
    for i, cue in enumerate(("root operator", "direct digits")):
        baselines[cue] = guess_by(cues["train"][:, i], learn, cues["test"][:, i], judge)
    return Task(f"listops {name}", len(TOKENS), 10, **splits, baselines=baselines)


def evaluate(expression: Sequence[int]) -> int:
    """The value of an expression, given as token numbers.

    Raises
    ------
    ValueError
        If it is not one well-formed expression, or a single digit.
    """
    stack: list[list[int]] = [[]]
    operators = []
    for token in expression:
        if _DIGIT <= token < _OPERATOR:
            stack[-1].append(token - _DIGIT)
        elif _OPERATOR <= token < _CLOSE:
            operators.append(token - _OPERATOR)
            stack.append([])
        elif token == _CLOSE and operators and stack[-1]:
            digits = stack.pop()
            stack[-1].append(_FUNCTIONS[operators.pop()](digits))
        else:
            raise ValueError(f"expression must be well formed, got {decode(expression)!r}")
    if operators or len(stack[0]) != 1:
        raise ValueError(f"expression must be well formed, got {decode(expression)!r}")
    return stack[0][0]


def encode(text: str) -> list[int]:
    """The token numbers of an expression whose tokens are separated by blanks."""
    try:
        return [TOKENS.index(token) for token in text.split()]
    except ValueError as error:
        raise ValueError(f"text must be made of {' '.join(TOKENS[1:])}, got {text!r}") from error


def decode(expression: Sequence[int]) -> str:
    """The text of an expression, given as token numbers; padding is left out."""
    return " ".join(TOKENS[token] for token in expression if token)


def _distinct(settings: ListOpsSettings, count: int, seed: int) -> list[bytes]:
    """As many expressions, none twice."""
    draw = random.Random(f"listops {seed}")
    found: dict[bytes, None] = {}  # a set that keeps its order
    for _ in range(TRIES * count):
        expression = _draw(settings, draw)
        if expression is not None:
            found[bytes(expression)] = None
            if len(found) == count:
                return list(found)
    raise ValueError(
        f"settings must allow for {count:,} different expressions, found {len(found):,} in "
        f"{TRIES * count:,} tries with {settings}"
    )


def _draw(settings: ListOpsSettings, draw: random.Random) -> list[int] | None:
    """An expression of a wanted length; None if what was drawn has another one."""
    tokens: list[int] = []
    missing: list[int] = []  # arguments that each open operator still waits for
    uniform, kinds, most = draw.random, len(OPERATIONS), settings.arguments - 1
    while True:
        # The first token is an operator: a digit alone would be too short.
        nested = len(missing) < settings.depth - 1 and uniform() < settings.operator_share
        if nested or not missing:
            tokens.append(_OPERATOR + int(uniform() * kinds))
            missing.append(2 + int(uniform() * most))
        else:
            tokens.append(_DIGIT + int(uniform() * 10))
            missing[-1] -= 1
        while missing and missing[-1] == 0:
            tokens.append(_CLOSE)
            missing.pop()
            if missing:
                missing[-1] -= 1
        if len(tokens) + len(missing) > settings.longest:
            return None
        if not missing:
            return tokens if len(tokens) >= settings.shortest else None


def _cues(examples: Examples) -> np.ndarray[Any, Any]:
    """(n, 2): the root operator, and it together with its value on its own digits."""
    cues = np.empty((len(examples), 2), np.int64)
    for cue, tokens, length in zip(cues, examples.tokens, examples.lengths, strict=True):
        level, digits = 0, []
        for token in tokens[:length].tolist():
            if _OPERATOR <= token < _CLOSE:
                level += 1
            elif token == _CLOSE:
                level -= 1
            elif level == 1:
                digits.append(token - _DIGIT)
        root = int(tokens[0]) - _OPERATOR
        value = _FUNCTIONS[root](digits) if digits else 10
        cue[:] = root, 11 * root + value
    return cues
