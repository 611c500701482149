"""Who takes part, what is left out and why, and what a run alone takes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from topk_np.bench import alone, figures, measure, sweep
from topk_np.bench.alone import Alone, run_alone
from topk_np.bench.cases import BOTH, FORWARD, Case, Inputs, attention_case, ffn_case
from topk_np.bench.measure import interleave, ratio
from topk_np.bench.peers import NUMPY, OURS, PEERS, PERFORMER, Peer
from topk_np.bench.runs import Runs
from topk_np.bench.sweep import Entrants, Limits, foresee

MEBI = 2**20


def nothing(text: str) -> None:
    """A tick."""


def build(case: Case, inputs: Inputs) -> Runs:
    """A peer that does nothing."""
    return Runs(lambda: None)


ABSENT = Peer("absent", "a peer that needs what nobody has", build, needs="no_such_package")


class Alones:
    """Stands in for `run_alone`: what each run takes follows from the case; keeps what was run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None) -> None:
        self.cases: list[int] = []
        self.fails_at = fails_at
        monkeypatch.setattr(sweep, "run_alone", self)

    def __call__(self, peer: Peer, case: Case, mode: str, limit: float) -> Alone | str:
        self.cases.append(case.keys)
        if case.keys == self.fails_at:
            return "failed: MemoryError"
        return Alone(case.scores * 1e-8, case.scores if peer.quadratic else case.rows)


def enter(entrants: Entrants, length: int, mode: str = FORWARD) -> list[str]:
    """The names of those that run attention of this length."""
    return [peer.name for peer, _ in entrants.enter(attention_case(length), mode, nothing)]


def test_a_peer_that_is_not_installed_is_left_out_with_a_line() -> None:
    notes: list[str] = []
    entrants = Entrants([ABSENT], Limits(1, 1), notes.append)
    assert notes == ["absent left out: no_such_package is not installed"]
    assert enter(entrants, 8) == []


def test_a_peer_too_slow_for_a_length_is_left_out_from_there_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alones = Alones(monkeypatch)
    notes: list[str] = []
    entrants = Entrants([PEERS[OURS]], Limits(0.1, 2**40), notes.append)
    lengths = [1024, 2048, 4096]
    assert [enter(entrants, length) for length in lengths] == [[OURS], [], []]
    assert alones.cases == [1024]
    assert notes == [
        "topk_np left out from L = 2,048, not causal, forward on: it would take about 0.17 s, "
        "the limit is 0.1 s"
    ]


def test_only_quadratic_memory_is_foreseen_to_grow_with_the_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Alones(monkeypatch)
    notes: list[str] = []
    entrants = Entrants([PEERS[OURS], PEERS[NUMPY]], Limits(1e9, 10 * MEBI), notes.append)
    assert enter(entrants, 1024) == [OURS, NUMPY]
    assert enter(entrants, 2048) == [OURS]
    assert notes == [
        "numpy left out from L = 2,048, not causal, forward on: it would take about 16.00 MiB, "
        "the limit is 10 MiB"
    ]


def test_a_first_case_that_is_large_is_foreseen_from_a_small_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alones = Alones(monkeypatch)
    notes: list[str] = []
    entrants = Entrants([PEERS[OURS]], Limits(1, 2**40), notes.append)
    assert enter(entrants, 2**20) == []
    assert alones.cases == [sweep.PROBE]
    assert len(notes) == 1


@pytest.mark.parametrize("fails_at", [1024, 2048])
def test_a_peer_that_fails_is_left_out_with_its_error(
    monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    Alones(monkeypatch, fails_at)
    notes: list[str] = []
    entrants = Entrants([PEERS[OURS]], Limits(1e9, 2**40), notes.append)
    assert enter(entrants, 2048) == []
    assert notes == ["topk_np left out from L = 2,048, not causal, forward on: failed: MemoryError"]
    assert enter(entrants, 2048, BOTH) == []


def test_a_linear_peer_is_foreseen_to_take_time_by_length() -> None:
    cases = attention_case(100), attention_case(300)
    seconds = [
        foresee(PEERS[name], cases[0], Alone(1.0, 1000), cases[1]).seconds
        for name in (OURS, PERFORMER)
    ]
    assert seconds == [9.0, 3.0]


def test_wider_cases_are_foreseen_to_take_longer() -> None:
    taken = foresee(PEERS[OURS], ffn_case(8, 64, 100), Alone(1.0, 1000), ffn_case(8, 128, 200))
    assert taken.seconds == 4.0
    assert taken.memory == pytest.approx(2000 * 208 / 108, abs=1)


def test_a_run_alone_measures_the_peak_beyond_the_inputs() -> None:
    case = attention_case(1024)
    taken = run_alone(PEERS[NUMPY], case, FORWARD, 60)
    assert isinstance(taken, Alone)
    assert taken.seconds > 0
    assert case.scores * 4 <= taken.memory <= 3 * case.scores * 4


def test_the_peak_of_the_parent_does_not_hide_that_of_the_run() -> None:
    large = np.ones(16 * MEBI)  # as much as to hide the 16 MiB that the run needs
    taken = run_alone(PEERS[NUMPY], attention_case(1024), FORWARD, 60)
    del large
    assert isinstance(taken, Alone)
    assert taken.memory > 8 * MEBI


def test_a_run_that_fails_says_why_in_one_line() -> None:
    said = run_alone(ABSENT, attention_case(8), FORWARD, 60)
    assert said == "failed: KeyError: 'absent'"


def test_a_run_that_is_killed_gives_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], -9, "", "")

    monkeypatch.setattr(subprocess, "run", killed)
    assert run_alone(PEERS[OURS], attention_case(8), FORWARD, 1) == "failed: exit code -9"


def test_a_run_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "START", 0)
    said = run_alone(PEERS[OURS], attention_case(8), FORWARD, 0.001)
    assert said == "took longer than 0.001 s"


def test_the_peak_is_known_on_other_systems_too(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = alone.peak_memory()
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert alone.peak_memory() >= 0.9 * peak


def test_a_feed_forward_case_is_named_by_its_shape() -> None:
    case = ffn_case(2048, 768, 3072)
    assert sweep.describe(case, BOTH) == "(768, 3072), 2,048 tokens, forward+backward"


def test_the_process_of_a_run_prints_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    job = {"peer": OURS, "case": vars(attention_case(64)), "mode": BOTH}
    alone.main(json.dumps(job))
    assert json.loads(capsys.readouterr().out).keys() == {"seconds", "memory"}


def test_rounds_take_turns_and_the_first_is_not_counted() -> None:
    order: list[str] = []
    seconds = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, print)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_quick_rounds_are_as_many_as_take_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"a": lambda: None}
    assert len(interleave(runs, 2, nothing, least=60)["a"]) == measure.MOST_ROUNDS
    monkeypatch.setattr(measure, "MOST_ROUNDS", 3)
    assert len(interleave(runs, 2, nothing, least=60)["a"]) == 3
    assert len(interleave(runs, 5, nothing, least=60)["a"]) == 5


def test_slow_rounds_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topk_np.bench.measure.SLOW_ROUND", -1)
    assert len(interleave({"a": lambda: None}, 9, nothing)["a"]) == 3


def test_a_ratio_is_the_median_over_pairs_of_one_round() -> None:
    assert ratio([1.0, 2.0, 9.0], [2.0, 2.0, 3.0]) == 1.0


def test_figures_say_whether_they_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    case = attention_case(16)
    slow = figures.against("never slower than infinity", np.inf, case, FORWARD, NUMPY)
    never = figures.against("never", 0, case, BOTH, NUMPY)
    memory = figures.Figure("memory", 1e6, figures.Entry(case, BOTH, OURS))
    monkeypatch.setitem(PEERS, "absent", ABSENT)
    absent = figures.against("absent", 1, case, BOTH, "absent")
    found = list(figures.check([slow, never, memory, absent], 1, nothing))
    assert [outcome.ok for outcome in found] == [True, False, True, None]
    assert found[3].missing == "absent left out: no_such_package is not installed"


def test_a_figure_whose_run_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "run_alone", lambda *args: "failed: MemoryError")
    figure = figures.Figure("memory", 1, figures.Entry(attention_case(16), BOTH, OURS))
    (outcome,) = figures.check([figure], 1, nothing)
    assert (outcome.ok, outcome.missing) == (None, "failed: MemoryError")


def test_the_promised_memory_counts_outputs_gradients_and_residuals() -> None:
    case = attention_case(65536)
    rows = 4 * 65536
    assert figures.allowed_memory(case, BOTH) == pytest.approx(
        1.15 * rows * (4 * 64 * 4 + 64 * 8) / MEBI + 64
    )
    assert figures.allowed_memory(case, FORWARD) == pytest.approx(
        1.15 * rows * (64 * 4 + 64 * 8) / MEBI + 64
    )
