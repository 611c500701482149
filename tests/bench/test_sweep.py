"""The choice of peers, the reasons to leave one out, and the time and memory of a run alone."""

from __future__ import annotations

import numpy as np
import pytest

from topk_np.bench import figures, sweep
from topk_np.bench.cases import BOTH, FORWARD, Case, Inputs, Runs, attention_case, ffn_case
from topk_np.bench.peers import NUMPY, OURS, PEERS, PERFORMER, Peer
from topk_np.bench.sweep import Alone, Entrants, Limits, predict, try_alone

MEBI = 2**20


def nothing(text: str) -> None:
    """A tick."""


def build(case: Case, inputs: Inputs) -> Runs:
    """A peer that does nothing."""
    return Runs(lambda: None)


ABSENT = Peer("absent", "a peer that needs what nobody has", build, needs="no_such_package")


class Alones:
    """Stands in for `try_alone`: what each run takes follows from the case; keeps what was run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None) -> None:
        self.cases: list[int] = []
        self.fails_at = fails_at
        monkeypatch.setattr(sweep, "try_alone", self)

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
        predict(PEERS[name], cases[0], Alone(1.0, 1000), cases[1]).seconds
        for name in (OURS, PERFORMER)
    ]
    assert seconds == [9.0, 3.0]


def test_wider_cases_are_foreseen_to_take_longer() -> None:
    taken = predict(PEERS[OURS], ffn_case(8, 64, 100), Alone(1.0, 1000), ffn_case(8, 128, 200))
    assert taken.seconds == 4.0
    assert taken.memory == pytest.approx(2000 * 208 / 108, abs=1)


def test_a_run_alone_measures_the_peak_beyond_the_inputs() -> None:
    case = attention_case(1024)
    taken = try_alone(PEERS[NUMPY], case, FORWARD, 60)
    assert isinstance(taken, Alone)
    assert taken.seconds > 0
    assert case.scores * 4 <= taken.memory <= 3 * case.scores * 4


def test_the_peak_of_the_parent_does_not_hide_that_of_the_run() -> None:
    large = np.ones(16 * MEBI)  # as much as to hide the 16 MiB that the run needs
    taken = try_alone(PEERS[NUMPY], attention_case(1024), FORWARD, 60)
    del large
    assert isinstance(taken, Alone)
    assert taken.memory > 8 * MEBI


def test_a_run_that_fails_says_why_in_one_line() -> None:
    said = try_alone(ABSENT, attention_case(8), FORWARD, 60)
    assert said == "failed: KeyError: 'absent'"


def test_a_feed_forward_case_is_named_by_its_shape() -> None:
    case = ffn_case(2048, 768, 3072)
    assert sweep.describe(case, BOTH) == "(768, 3072), 2,048 tokens, forward+backward"


def test_a_run_in_this_process_takes_time() -> None:
    assert sweep.measure(OURS, attention_case(64), BOTH).seconds > 0


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
    monkeypatch.setattr(figures, "try_alone", lambda *args: "failed: MemoryError")
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
