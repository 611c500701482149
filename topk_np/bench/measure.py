"""Timing several runs in turn, so that what slows the machine slows them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

SLOW_ROUND = 60.0  # seconds; when one round takes longer, `FEWEST_ROUNDS` must do
FEWEST_ROUNDS = 3
MOST_ROUNDS = 300  # of quick ones

Tick = Callable[[str], object]  # told the name of what runs next


def interleave(
    runs: dict[str, Callable[[], Any]],
    repeats: int,
    tick: Tick,
    *,
    clock: Callable[[], float] = perf_counter,
    least: float = 0.0,
) -> dict[str, list[float]]:
    """
    Seconds of each run in each round: all run once in a round, one after the other.

    They are those of `clock`, as for instance `time.process_time`, which counts what all cores
    did. A round before the first is not counted: it loads, allocates and warms up. Rounds that are
    quick are more than `repeats`, as many as take `least` seconds in all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    start = perf_counter()
    for name, run in runs.items():
        tick(name)
        run()
    if perf_counter() - start > SLOW_ROUND:
        repeats = min(repeats, FEWEST_ROUNDS)
    rounds, end = 0, perf_counter() + least
    while rounds < repeats or (rounds < MOST_ROUNDS and perf_counter() < end):
        for name, run in runs.items():
            tick(name)
            start = clock()
            results = run()
            seconds[name].append(clock() - start)
            del results  # releasing memory is not timed
        rounds += 1
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float], /) -> float:
    """The median over the rounds of ours / theirs, each pair from one round."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))
