"""How many of the keys that one selection keeps another keeps too."""

from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import calls
from tests.backends import Backend
from tests.strategies import AttentionProblem, attention_with_options
from topk_np.diagnostics import overlap, recall


def by_sets(found: Any, wanted: Any) -> float:
    """The definition, for one query."""
    kept, reference = ({int(j) for j in row if j >= 0} for row in (found, wanted))
    return len(kept & reference) / len(reference) if reference else 1.0


@st.composite
def selections(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two selections from few keys, with unused slots and the same key in several."""
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
    return tuple(  # type: ignore[return-value]
        draw(
            hnp.arrays(
                draw(st.sampled_from([np.int32, np.int64])),
                (*shape, draw(st.integers(0, 5))),
                elements=st.integers(-2, 6),
            )
        )
        for shape in shapes.input_shapes
    )


@given(pair=selections(), chunk=st.sampled_from([1, 20, overlap.CHUNK]))
def test_recall_is_the_share_of_the_set_of_reference_keys_that_is_found(
    xp: Backend, pair: tuple[np.ndarray, np.ndarray], chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "CHUNK", chunk)
        shares = recall(*xp.arrays(*pair))
    lead = np.broadcast_shapes(*(array.shape[:-1] for array in pair))
    assert shares.shape == lead
    found, wanted = (np.broadcast_to(array, (*lead, array.shape[-1])) for array in pair)
    for place in np.ndindex(lead):
        expected = by_sets(found[place], wanted[place])
        np.testing.assert_allclose(xp.to_numpy(shares)[place], expected, rtol=1e-6)


@given(data=st.data(), problem=attention_with_options())
def test_a_larger_k_finds_all_that_a_smaller_one_keeps(
    xp: Backend, data: st.DataObject, problem: AttentionProblem
) -> None:
    rule = {"k": problem.k + 2, "p": None, "max_k": None}
    more = calls.topk_attention(problem, xp, **rule).residuals.indices
    few = calls.topk_attention(problem, xp).residuals.indices
    assert np.all(xp.to_numpy(recall(more, few)) == 1)
    assert np.all(xp.to_numpy(recall(few, more)) <= 1)
    # In another order, padded with copies.
    order = data.draw(st.permutations(range(few.shape[-1])))
    shuffled = xp.to_numpy(few)[..., [*order, *order[:1]]]
    assert np.all(xp.to_numpy(recall(xp.asarray(shuffled), few)) == 1)


def test_a_share_is_in_the_default_dtype_of_the_library(xp: Backend) -> None:
    (indices,) = xp.arrays(np.asarray([[0, 1, 2]], np.int32))
    assert recall(indices, indices).dtype == xp.xp.ones(1).dtype


def test_no_queries_and_no_slots() -> None:
    assert recall(np.zeros((2, 0, 3), int), np.zeros((2, 0, 4), int)).shape == (2, 0)
    assert np.array_equal(recall(np.zeros((2, 0), int), np.zeros((2, 0), int)), [1, 1])
    assert recall(np.asarray([4, 2]), np.asarray([2, 3])) == 0.5
    assert np.array_equal(recall(np.zeros((1, 2), np.uint8), np.ones((3, 1), int)), [0, 0, 0])


FULL = np.zeros((2, 3, 4), int)


@pytest.mark.parametrize(
    ("indices", "reference", "error", "message"),
    [
        ([[0]], FULL, TypeError, r"indices must be an array .*, got \[\[0\]\] \(list\)"),
        (FULL, 3, TypeError, r"reference must be an array .*, got 3 \(int\)"),
        (FULL > 0, FULL, TypeError, "indices must be an integer array, got dtype bool"),
        (FULL, FULL * 1.0, TypeError, "reference must be an integer array, got dtype float64"),
        (FULL, array_api_strict.zeros((2, 3, 4), dtype=array_api_strict.int64), TypeError, "numpy"),
        (FULL, np.asarray(3), ValueError, r"reference must have shape \(\.\.\., K\), .*got \(\)"),
        (FULL, FULL[:, :2], ValueError, r"must broadcast, got \(2, 3\) and \(2, 2\)"),
    ],
)
def test_wrong_selections_are_named(
    indices: Any, reference: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        recall(indices, reference)
