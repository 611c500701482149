"""All peers over a series of cases: which take part, and the time and memory of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import NamedTuple

from topk_np._process import MEBI, RunFailed, Tick, interleave, peak_memory, ratio, run_alone
from topk_np.bench.cases import ATTENTION, MODES, Case, make_inputs
from topk_np.bench.peers import OURS, PEERS, Peer

PROBE = 1024  # queries and keys of the run from which a first large one is predicted
WARM_UP = 128  # queries and keys of the problem that loads whatever is loaded on first use


class Alone(NamedTuple):
    """Time and memory of one run in a process of its own."""

    seconds: float
    memory: int
    """Bytes beyond the inputs, at the peak of the whole process."""


def try_alone(peer: Peer, case: Case, mode: str, limit: float) -> Alone | str:
    """Run in a new process; a sentence if that fails or takes more than `limit` seconds."""
    try:
        return run_alone(measure, peer.name, case, mode, limit=limit)[0]
    except RunFailed as error:
        return str(error)


def measure(name: str, case: Case, mode: str) -> Alone:
    """Run a peer in this process, once the inputs are made and a small problem was run."""
    importlib.import_module("scipy.sparse")  # which topk_np loads when a problem is large enough
    peer, inputs = PEERS[name], make_inputs(case)
    run, small = peer.build(case, inputs).of(mode), case.clipped(WARM_UP)
    peer.build(small, make_inputs(small)).of(mode)()
    before, start = peak_memory(), perf_counter()
    results = run()
    seconds, after = perf_counter() - start, peak_memory()
    del results  # only now: outputs count
    return Alone(seconds, after - before)


@dataclass(frozen=True)
class Row:
    """Time and memory of one peer for one case."""

    case: Case
    mode: str
    peer: str
    seconds: list[float] = field(repr=False)
    """Seconds of each round."""
    ratio: float | None
    """Its time over that of topk_np, the median over rounds; None if that was left out."""
    memory: int
    """Bytes beyond the inputs at the peak, in a process of its own."""

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.seconds)


@dataclass(frozen=True)
class Limits:
    """The time and memory that one run may take."""

    seconds: float
    memory: int


class Entrants:
    """The choice of peers for a case; a peer that leaves one out leaves out all larger ones."""

    def __init__(self, peers: Sequence[Peer], limits: Limits, note: Callable[[str], object]):
        self._limits = limits
        self._note = note
        self._peers = [peer for peer in peers if peer.installed]
        self._last: dict[tuple[str, ...], tuple[Case, Alone]] = {}
        self._out: set[tuple[str, ...]] = set()
        for peer in peers:
            if not peer.installed:
                note(f"{peer.name} left out: {peer.needs} is not installed")

    def enter(self, case: Case, mode: str, tick: Tick) -> Iterator[tuple[Peer, Alone]]:
        """Each peer that can run `case` within the limits, with what it took alone."""
        for peer in self._peers:
            series = (peer.name, mode, case.kind, str(case.causal))
            if series in self._out or not peer.does(case, mode):
                continue
            tick(f"{peer.name} alone")
            taken = self._run(peer, case, mode, series)
            if isinstance(taken, Alone):
                self._last[series] = case, taken
                yield peer, taken
            else:
                self._out.add(series)
                self._note(f"{peer.name} left out from {describe(case, mode)} on: {taken}")

    def _run(self, peer: Peer, case: Case, mode: str, series: tuple[str, ...]) -> Alone | str:
        """Time and memory of `peer`, or the reason why it is left out."""
        if series not in self._last and case.clipped(PROBE) != case:
            probe = case.clipped(PROBE)
            taken = try_alone(peer, probe, mode, self._limits.seconds)
            if isinstance(taken, str):
                return taken
            self._last[series] = probe, taken
        if series in self._last:
            predicted, limits = predict(peer, *self._last[series], case), self._limits
            for size, limit, unit in (
                (predicted.seconds, limits.seconds, "s"),
                (predicted.memory / MEBI, limits.memory / MEBI, "MiB"),
            ):
                if size > limit:
                    return f"it would take about {size:,.2f} {unit}, the limit is {limit:,g} {unit}"
        return try_alone(peer, case, mode, self._limits.seconds)


def predict(peer: Peer, smaller: Case, taken: Alone, case: Case) -> Alone:
    """Predict the time and memory of `case` from those of a smaller one."""
    wider = case.width / smaller.width
    scores, rows = case.scores / smaller.scores, case.rows / smaller.rows
    growth = scores if peer.quadratic else max(wider, 1) * rows
    work = (rows if peer.linear else scores) * wider
    return Alone(taken.seconds * work, int(taken.memory * growth))


def sweep(
    cases: Sequence[Case], entrants: Entrants, repeats: int, tick: Tick
) -> Iterator[list[Row]]:
    """Measure each case, smallest first, forward and with the backward pass."""
    for case in cases:
        for mode in MODES:
            taken = dict(entrants.enter(case, mode, tick))
            inputs = make_inputs(case)
            runs = {peer.name: peer.build(case, inputs).of(mode) for peer in taken}
            seconds = interleave(runs, repeats, tick)
            ours = seconds.get(OURS)
            yield [
                Row(
                    case,
                    mode,
                    peer.name,
                    seconds[peer.name],
                    ratio(seconds[peer.name], ours) if ours else None,
                    alone.memory,
                )
                for peer, alone in taken.items()
            ]


def describe(case: Case, mode: str) -> str:
    """A case in a few words."""
    if case.kind == ATTENTION:
        causal = "causal" if case.causal else "not causal"
        return f"L = {case.keys:,}, {causal}, {mode}"
    return f"({case.width}, {case.keys}), {case.queries:,} tokens, {mode}"
