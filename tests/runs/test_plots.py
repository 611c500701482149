"""Plots of runs: the labels of guesses without a model."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from topk_np.runs.plots import _baselines


@pytest.mark.parametrize(
    ("guesses", "names"),
    [
        ({"majority": 0.1, "digits": 0.5}, ["digits", "majority"]),
        ({"majority": 0.443, "length": 0.439}, ["majority, length"]),
        ({"a": 0.5, "b": 0.48, "c": 0.46, "d": 0.1}, ["a, b", "c", "d"]),
        ({}, []),
    ],
)
def test_guesses_that_are_near_each_other_share_a_label(
    guesses: dict[str, float], names: list[str]
) -> None:
    axes = Figure().subplots()
    axes.set_ylim(0, 0.75)
    _baselines(axes, guesses)
    assert [text.get_text() for text in axes.texts] == names
    assert len(axes.lines) == len(guesses)
