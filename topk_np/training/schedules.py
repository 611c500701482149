"""Learning rates by step: functions of the number of steps taken before."""

from __future__ import annotations

import math
from collections.abc import Callable

from topk_np._namespace import check_integer, check_number

Schedule = Callable[[int], float]


def constant(rate: float, /, *, warmup: int = 0) -> Schedule:
    """
    The same rate throughout, once warm.

    Parameters
    ----------
    rate : float
        The learning rate, at least 0.
    warmup : int, default 0
        Steps in which the rate rises in equal parts; the last of them has all of it.

    Returns
    -------
    callable
        From the number of steps taken before, 0 at first, to the learning rate.

    Raises
    ------
    TypeError
        If an argument is not a number.
    ValueError
        If an argument is negative.

    Examples
    --------
    >>> from topk_np.training import constant
    >>> [constant(0.1, warmup=2)(step) for step in range(4)]
    [0.05, 0.1, 0.1, 0.1]
    """
    _check(rate, warmup)
    return lambda step: rate * _warmth(step, warmup)


def warmup_cosine(rate: float, /, *, steps: int, warmup: int = 0, end: float = 0.0) -> Schedule:
    """
    Rise to a rate, then fall along half a cosine.

    Parameters
    ----------
    rate : float
        The largest learning rate.
    steps : int
        Steps of the training; the step after the last would have the rate `end`.
    warmup : int, default 0
        Steps in which the rate rises in equal parts; the last of them has all of it.
    end : float, default 0
        What the rate falls to, and stays at.

    Returns
    -------
    callable
        From the number of steps taken before, 0 at first, to the learning rate.

    Raises
    ------
    TypeError
        If an argument is not a number.
    ValueError
        If one is negative, or `warmup` is longer than `steps`.

    Notes
    -----
    Loshchilov and Hutter 2017, equation 5, without restarts, arXiv:1608.03983.

    Examples
    --------
    >>> from topk_np.training import warmup_cosine
    >>> rate = warmup_cosine(1.0, steps=6, warmup=2)
    >>> [round(rate(step), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    _check(rate, warmup, steps, end)

    def schedule(step: int) -> float:
        fall = (1 - math.cos(math.pi * _progress(step, steps, warmup))) / 2
        return (rate + (end - rate) * fall) * _warmth(step, warmup)

    return schedule


def warmup_linear(rate: float, /, *, steps: int, warmup: int = 0, end: float = 0.0) -> Schedule:
    """
    Rise to a rate, then fall in equal parts.

    Parameters
    ----------
    rate : float
        The largest learning rate.
    steps : int
        Steps of the training; the step after the last would have the rate `end`.
    warmup : int, default 0
        Steps in which the rate rises in equal parts; the last of them has all of it.
    end : float, default 0
        What the rate falls to, and stays at.

    Returns
    -------
    callable
        From the number of steps taken before, 0 at first, to the learning rate.

    Raises
    ------
    TypeError
        If an argument is not a number.
    ValueError
        If one is negative, or `warmup` is longer than `steps`.

    Examples
    --------
    >>> from topk_np.training import warmup_linear
    >>> rate = warmup_linear(1.0, steps=6, warmup=2)
    >>> [rate(step) for step in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    _check(rate, warmup, steps, end)
    return lambda step: (
        (rate + (end - rate) * _progress(step, steps, warmup)) * _warmth(step, warmup)
    )


def _warmth(step: int, warmup: int) -> float:
    """The part of the rate that a step has: all of it after `warmup` steps."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _progress(step: int, steps: int, warmup: int) -> float:
    """The part of the steps after the warm-up that is done, from 0 to 1."""
    if step < min(warmup, steps):
        return 0.0
    return 1.0 if step >= steps else (step - warmup) / (steps - warmup)


def _check(rate: float, warmup: int, steps: int | None = None, end: float = 0.0) -> None:
    for name, number in (("rate", rate), ("end", end)):
        if check_number(name, number) < 0:
            raise ValueError(f"{name} must be at least 0, got {number}")
    check_integer("warmup", warmup, least=0)
    if steps is not None and warmup > check_integer("steps", steps, least=1):
        raise ValueError(f"warmup must be at most steps, {steps}, got {warmup}")
