"""Learning rates by step: rise, peak, fall, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topk_np.training import constant, warmup_cosine, warmup_linear


@given(data=st.data(), steps=st.integers(1, 50), end=st.floats(0, 1))
def test_rates_rise_to_the_peak_and_fall_to_the_end(
    data: st.DataObject, steps: int, end: float
) -> None:
    warmup = data.draw(st.integers(0, steps))
    make = data.draw(st.sampled_from([warmup_cosine, warmup_linear]))
    rates = [make(1.0, steps=steps, warmup=warmup, end=end)(step) for step in range(steps + 3)]
    for step in range(warmup):
        assert rates[step] == pytest.approx((step + 1) / warmup)
    falling = rates[warmup:]
    assert all(a >= b - 1e-12 for a, b in pairwise(falling))
    assert falling[0] == pytest.approx(1.0 if warmup < steps else end)
    assert rates[steps:] == pytest.approx([end] * 3)
    middle = (steps + warmup) / 2
    if middle == int(middle) < steps:
        assert rates[int(middle)] == pytest.approx((1 + end) / 2)


def test_a_quarter_of_the_way_down_a_cosine() -> None:
    assert warmup_cosine(2.0, steps=4)(1) == pytest.approx(1 + math.sqrt(0.5))
    assert warmup_linear(2.0, steps=4)(1) == 1.5
    assert [constant(3.0)(step) for step in (0, 10**6)] == [3.0, 3.0]


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (constant, {"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
        (warmup_linear, {"steps": 5, "warmup": 6}, ValueError, "at most steps, 5, got 6"),
        (warmup_cosine, {"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        (warmup_cosine, {"steps": 5, "end": -0.1}, ValueError, "end must be at least 0, got -0.1"),
        (warmup_linear, {"steps": 2.5}, TypeError, "steps must be an integer, got 2.5"),
    ],
)
def test_wrong_settings_are_refused(
    make: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(1.0, **options)
