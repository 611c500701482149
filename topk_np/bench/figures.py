"""The bounds that the library is held to: ratios within one run, and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

from topk_np._process import MEBI, Tick, interleave, ratio
from topk_np.bench.cases import BOTH, FORWARD, MODES, Case, attention_case, ffn_case, make_inputs
from topk_np.bench.peers import (
    GEMM,
    NUMPY,
    OURS,
    PAPER,
    PEERS,
    SDPA,
    STEP_DENSE,
    STEP_TOPK,
    STEP_TORCH,
    TORCH,
)
from topk_np.bench.step import step_case
from topk_np.bench.sweep import try_alone

PATIENCE = 600  # seconds that a run for its memory may take
QUICK = 2.0  # seconds that quick rounds take in all


class Entry(NamedTuple):
    """One thing to run."""

    case: Case
    mode: str
    peer: str


@dataclass(frozen=True)
class Figure:
    """A bound for the time of `ours` over that of `theirs`, or without it for the memory."""

    what: str
    at_most: float
    """A ratio, or MiB beyond the inputs."""
    ours: Entry
    theirs: Entry | None = None
    clock: Callable[[], float] = perf_counter
    """The clock; `process_time` counts the work of all threads."""


@dataclass(frozen=True)
class Outcome:
    """A figure as measured."""

    figure: Figure
    measured: float | None = None
    ours: list[float] | None = None
    """Seconds of each round."""
    theirs: list[float] | None = None
    missing: str | None = None
    """The reason why it was not measured."""

    @property
    def ok(self) -> bool | None:
        """True if the measurement keeps to the bound; None if there is none."""
        return None if self.measured is None else self.measured <= self.figure.at_most


def against(what: str, at_most: float, case: Case, mode: str, peer: str) -> Figure:
    """The figure that compares topk_np with a peer in the same case."""
    return Figure(what, at_most, Entry(case, mode, OURS), Entry(case, mode, peer))


def allowed_memory(case: Case, mode: str) -> float:
    """MiB that are promised: 1.15 × (output + gradients + residuals) + 64 MiB."""
    numbers = case.heads * case.queries * (case.width + 2 * case.k)  # output, scores, indices
    if mode == BOTH:
        numbers += case.heads * (case.queries + 2 * case.keys) * case.width
    return 1.15 * 4 * numbers / MEBI + 64


def _memory(what: str, case: Case, mode: str) -> Figure:
    return Figure(what, allowed_memory(case, mode), Entry(case, mode, OURS))


def _step(what: str, peer: str) -> Figure:
    case = step_case()
    entries = Entry(case, BOTH, peer), Entry(case, BOTH, STEP_TORCH)
    return Figure(f"training step, {what}, CPU time / PyTorch dense", 1.5, *entries, process_time)


_L16 = attention_case(16384)
_LONGEST = attention_case(65536)
_MILLION = attention_case(2**20, queries=2048, heads=1)

FIGURES = (
    against("L = 1,024, forward+backward / PyTorch SDPA", 0.8, attention_case(1024), BOTH, SDPA),
    against("L = 4,096, forward+backward / PyTorch SDPA", 0.3, attention_case(4096), BOTH, SDPA),
    against("L = 16,384, forward+backward / PyTorch SDPA", 0.22, _L16, BOTH, SDPA),
    against("L = 16,384, forward / PyTorch SDPA", 0.5, _L16, FORWARD, SDPA),
    against("L = 16,384, forward+backward / the paper in PyTorch", 0.1, _L16, BOTH, PAPER),
    against(
        "L = 65,536, 2,048 queries, forward / GEMM of the scores",
        1.6,
        attention_case(65536, queries=2048),
        FORWARD,
        GEMM,
    ),
    Figure(
        "L = 16,384, forward+backward, causal / not causal",
        0.6,
        Entry(attention_case(16384, causal=True), BOTH, OURS),
        Entry(_L16, BOTH, OURS),
    ),
    against(
        "feed-forward (1024, 16384), forward+backward / PyTorch dense",
        0.3,
        ffn_case(2048, 1024, 16384),
        BOTH,
        TORCH,
    ),
    against(
        "feed-forward (1024, 65536), forward+backward / PyTorch dense",
        0.4,
        ffn_case(1024, 1024, 65536),
        BOTH,
        TORCH,
    ),
    *(
        against(f"L = 128, k = {k}, {mode} / NumPy", 1.5, attention_case(128, k=k), mode, NUMPY)
        for mode in MODES
        for k in (16, 64)
    ),
    _step("top-k", STEP_TOPK),
    _step("dense", STEP_DENSE),
    _memory("L = 65,536, forward+backward, peak beyond the inputs", _LONGEST, BOTH),
    _memory("a million keys, 2,048 queries, forward, peak beyond the inputs", _MILLION, FORWARD),
)


def check(figures: Sequence[Figure], repeats: int, tick: Tick) -> Iterator[Outcome]:
    """Measure each figure."""
    for figure in figures:
        peer = PEERS[figure.ours.peer if figure.theirs is None else figure.theirs.peer]
        if not peer.installed:
            yield Outcome(figure, missing=f"{peer.name} left out: {peer.needs} is not installed")
        elif figure.theirs is None:
            yield _check_memory(figure, tick)
        else:
            yield _check_ratio(figure, figure.theirs, repeats, tick)


def _check_memory(figure: Figure, tick: Tick) -> Outcome:
    tick(f"{figure.what}: alone")
    case, mode, peer = figure.ours
    taken = try_alone(PEERS[peer], case, mode, PATIENCE)
    if isinstance(taken, str):
        return Outcome(figure, missing=taken)
    return Outcome(figure, taken.memory / MEBI, [taken.seconds])


def _check_ratio(figure: Figure, theirs: Entry, repeats: int, tick: Tick) -> Outcome:
    inputs = {case: make_inputs(case) for case in {figure.ours.case, theirs.case}}
    runs = {
        name: PEERS[entry.peer].build(entry.case, inputs[entry.case]).of(entry.mode)
        for name, entry in {"ours": figure.ours, "theirs": theirs}.items()
    }
    seconds = interleave(
        runs,
        repeats,
        lambda name: tick(f"{figure.what}: {name}"),
        clock=figure.clock,
        least=QUICK,
    )
    ours, others = seconds["ours"], seconds["theirs"]
    return Outcome(figure, ratio(ours, others), ours, others)


def summary(outcome: Outcome, /) -> dict[str, object]:
    """A figure for the JSON file."""
    figure = outcome.figure
    return {
        "what": figure.what,
        "unit": "ratio" if figure.theirs else "MiB",
        "at_most": figure.at_most,
        "measured": outcome.measured,
        "ok": outcome.ok,
        "missing": outcome.missing,
        "seconds": {
            name: median(times) if times else None
            for name, times in (("ours", outcome.ours), ("theirs", outcome.theirs))
        },
        "rounds": len(outcome.ours or ()),
    }
