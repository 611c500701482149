"""Rotary embedding: complex multiplication, undone by its backward, relative in the scores."""

from __future__ import annotations

import cmath
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import NUMPY, Backend
from tests.oracles import assert_close
from tests.strategies import arrays_of
from topk_np import Rope, rotary_embedding, rotary_embedding_bwd


@st.composite
def ropes(draw: st.DrawFn, width: int) -> Rope:
    """A rotation of rows of an even width."""
    return Rope(
        base=draw(st.sampled_from([10.0, 1e4, 5e5])),
        layout=draw(st.sampled_from(["half", "interleaved"])),
        width=draw(st.none() | st.integers(1, width // 2).map(lambda n: 2 * n)),
    )


@st.composite
def rotations_QW(draw: st.DrawFn) -> tuple[np.ndarray, Rope, Any]:
    """Rows (..., Q, W), a rotation and positions, given or counted from an offset."""
    lead = draw(st.sampled_from([(), (2,), (2, 3)]))
    queries, width = draw(st.integers(1, 4)), 2 * draw(st.integers(1, 3))
    x = draw(arrays_of((*lead, queries, width), whole=False))
    positions: Any = draw(st.integers(-9, 99))
    if draw(st.booleans()):
        shape = (*lead[draw(st.integers(0, len(lead))) :], queries)
        positions = np.random.default_rng(positions + 9).integers(-9, 99, shape)
    return x, draw(ropes(width)), positions


def on(xp: Backend, positions: Any) -> Any:
    return xp.asarray(positions) if isinstance(positions, np.ndarray) else positions


def turned_by_loops(x: np.ndarray, rope: Rope, positions: Any) -> np.ndarray:
    """Each pair as a complex number, multiplied by one of size 1."""
    if not isinstance(positions, np.ndarray):
        positions = positions + np.arange(x.shape[-2])
    places = np.broadcast_to(positions, x.shape[:-1])
    width = x.shape[-1] if rope.width is None else rope.width
    out = x.copy()
    for row in np.ndindex(x.shape[:-1]):
        for i in range(width // 2):
            a, b = (i, i + width // 2) if rope.layout == "half" else (2 * i, 2 * i + 1)
            angle = float(places[row]) * rope.base ** (-2 * i / width)
            z = complex(x[row][a], x[row][b]) * cmath.exp(1j * angle)
            out[row][a], out[row][b] = z.real, z.imag
    return out


@given(case=rotations_QW())
def test_a_pair_is_turned_as_a_complex_number(xp: Backend, case: Any) -> None:
    x, rope, positions = case
    out = xp.to_numpy(rotary_embedding(xp.asarray(x), rope, positions=on(xp, positions)))
    assert_close(out, turned_by_loops(x, rope, positions), size=100.0)


@given(case=rotations_QW())
def test_the_backward_pass_is_the_inverse(xp: Backend, case: Any) -> None:
    x, rope, positions = case
    turned = rotary_embedding(xp.asarray(x), rope, positions=on(xp, positions))
    back = rotary_embedding_bwd(turned, rope, positions=on(xp, positions))
    assert_close(xp.to_numpy(back), x, size=10.0)


@given(case=rotations_QW())
def test_the_backward_pass_is_the_transpose(case: Any) -> None:
    x, rope, positions = case
    dout = np.random.default_rng(0).standard_normal(x.shape)
    out = rotary_embedding(x, rope, positions=positions)
    dx = rotary_embedding_bwd(dout, rope, positions=positions)
    assert_close(np.sum(dout * out), np.sum(dx * x), size=float(x.size))


@given(case=rotations_QW(), shift=st.integers(-500, 500))
def test_scores_depend_on_relative_positions_only(case: Any, shift: int) -> None:
    x, rope, positions = case
    key = x[..., ::-1, :]
    scores = [
        rotary_embedding(x, rope, positions=positions + by)
        @ rotary_embedding(key, rope, positions=by).mT
        for by in (0, shift)
    ]
    assert_close(scores[1], scores[0], size=1e4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_dtype_is_kept_and_half_precision_rounded_once(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((50, 8))
    x = x.astype(dtype)
    out = rotary_embedding(x, Rope(), positions=1000)
    assert out.dtype == x.dtype
    exact = turned_by_loops(x.astype(np.float64), Rope(), 1000)
    assert np.max(np.abs(out - exact)) <= np.finfo(dtype).eps * 4


def test_layouts_differ_by_the_order_of_features() -> None:
    x = np.random.default_rng(0).standard_normal((5, 6))
    order = np.asarray([0, 3, 1, 4, 2, 5])
    half = rotary_embedding(x, Rope(layout="half"), positions=3)
    other = rotary_embedding(x[:, order], Rope(layout="interleaved"), positions=3)
    assert_close(other, half[:, order])


def test_inputs_are_not_written_to_and_never_returned() -> None:
    x = NUMPY.asarray(np.ones((2, 4)))
    assert not np.shares_memory(rotary_embedding(x, Rope(width=2)), x)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"base": 0.0}, ValueError, "base must be positive, got 0.0"),
        ({"base": "big"}, TypeError, "base must be a real number, got 'big'"),
        ({"layout": "pairs"}, ValueError, "layout must be one of 'half', 'interleaved', got 'pai"),
        ({"width": 3}, ValueError, "width must be even, got 3"),
        ({"width": 0}, ValueError, "width must be at least 2, got 0"),
        ({"width": 2.0}, TypeError, "width must be an integer, got 2.0"),
    ],
)
def test_a_rotation_is_checked(change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(Rope(), **change)


@pytest.mark.parametrize("function", [rotary_embedding, rotary_embedding_bwd])
@pytest.mark.parametrize(
    ("x", "rope", "positions", "error", "message"),
    [
        (np.ones((2, 3)), Rope(), 0, ValueError, "rope must turn an even number of the 3 .* got 3"),
        (np.ones((2, 4)), Rope(width=6), 0, ValueError, "of the 4 features, at least 2, got 6"),
        (np.ones((2, 0)), Rope(), 0, ValueError, "at least 2, got 0"),
        (np.ones(4), Rope(), 0, ValueError, r"must have shape \(\.\.\., Q, W\)"),
        (np.ones((2, 4), int), Rope(), 0, TypeError, "must have dtype float16"),
        (np.ones((2, 4)), 1e4, 0, TypeError, "rope must be a Rope, got float"),
        (np.ones((2, 4)), Rope(), 0.5, TypeError, "positions must be an integer, got 0.5"),
        (np.ones((2, 4)), Rope(), np.ones(2), TypeError, "positions must be integers, .* float64"),
        (np.ones((2, 4)), Rope(), np.arange(3), ValueError, r"positions must broadcast.*\(3,\)"),
        (np.ones((2, 4)), Rope(), np.ones((3, 2), int), ValueError, r"got shape \(3, 2\)"),
    ],
)
def test_bad_input_is_named(
    function: Any, x: Any, rope: Any, positions: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(x, rope, positions=positions)
