"""Tasks by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from topk_np._process import UserError
from topk_np.tasks.examples import Task

# name: module, function, its first argument
TASKS: dict[str, tuple[str, str, Any]] = {
    "listops": ("listops", "listops", "12-48"),
    "listops-16-64": ("listops", "listops", "16-64"),
    "listops-32-128": ("listops", "listops", "32-128"),
    "listops-lra": ("listops", "listops", "lra"),
    "text": ("text", "text_classification", "source"),
    "sentiment": ("text", "text_classification", "sentiment"),
    "retrieval": ("text", "text_retrieval", 40),
    "pixels": ("pixels", "fashion_mnist", 14),
    "pixels-784": ("pixels", "fashion_mnist", 28),
}


class MissingDataError(UserError, RuntimeError):
    """A task's data are missing or damaged; the message is one line and says what brings them."""


def load(name: str, /, *, seed: int = 0, **sizes: int) -> Task:
    """
    Make a task by name.

    Parameters
    ----------
    name : str
        Such as ``listops``, ``text``, ``retrieval`` or ``pixels``; another name is an error that
        lists them all.
    seed : int
        The seed that examples or splits are drawn from, at least 0.
    **sizes : int
        Examples of each split, `train`, `validation` and `test`; by default the task's own.

    Returns
    -------
    Task
        The same for the same seed and sizes.

    Raises
    ------
    ValueError
        If there is no task of that name, or a number is too small.
    MissingDataError
        If the task needs data that are not there.

    Examples
    --------
    >>> from topk_np.tasks import load
    >>> task = load("listops", train=1000, validation=100, test=100)
    >>> task.name, task.vocabulary, task.classes, task.train.tokens.shape
    ('listops 12-48', 16, 10, (1000, 39))
    """
    if name not in TASKS:
        raise ValueError(f"name must be one of {', '.join(TASKS)}, got {name!r}")
    module, function, first = TASKS[name]
    make: Callable[..., Task] = getattr(
        importlib.import_module(f"topk_np.tasks.{module}"), function
    )
    return make(first, seed=seed, **sizes)
