"""The k best of short rows are marked where all is finite, and nothing is where it is not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.oracles import select_by_sorting
from tests.strategies import scores_CN
from topk_np.kernels.numpy_mark import mark


@pytest.fixture(scope="module", autouse=True, params=["sorted", "partitioned"])
def ordering(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether rows are sorted, or only partitioned where that is enough."""
    with pytest.MonkeyPatch.context() as patch:
        most = 2**20 if request.param == "sorted" else 0
        patch.setattr("topk_np.kernels.numpy_mark.SORTED_BYTES", most)
        yield


def places(hits: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in hits]


@given(scores=st.sampled_from(["float32", "float64"]).flatmap(scores_CN), data=st.data())
def test_what_is_marked_is_what_a_sorted_list_gives(
    scores: np.ndarray, data: st.DataObject
) -> None:
    assume(scores.size > 0)
    scores[np.isnan(scores) | (scores == np.inf)] = 1
    allowed = np.count_nonzero(scores > -np.inf, axis=1)
    k = data.draw(st.integers(1, scores.shape[1]))
    marked = mark(scores, np.minimum(allowed, k))
    assert marked is not None
    wanted = [select_by_sorting(row.tolist(), k) for row in scores]
    assert places(marked.hits) == wanted
    for row, chosen, largest in zip(scores, wanted, marked.largest[:, 0], strict=True):
        assert largest == (row[chosen].max() if chosen else 0)
    if (allowed >= k).all():
        same = mark(scores, k)
        assert same is not None
        assert places(same.hits) == wanted
        assert np.array_equal(same.largest, marked.largest)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 3])
@pytest.mark.parametrize("counts", [4, np.array([4, 4])], ids=["one", "each"])
def test_rows_that_are_not_finite_are_not_marked(bad: float, column: int, counts: int) -> None:
    scores = np.array([[0.0, 1.0, 2.0, 3.0], [3.0, 3.0, 3.0, 3.0]])
    assert mark(scores, counts) is not None
    scores[0, column] = bad
    assert mark(scores, counts) is None


def test_among_equal_scores_the_first_are_marked_and_both_zeros_are_equal() -> None:
    scores = np.array([[1.0] * 7, [0.0, -0.0, 0.0, -0.0, 1.0, -1.0, 0.0]], np.float32)
    marked = mark(scores, 3)
    assert marked is not None
    assert places(marked.hits) == [[0, 1, 2], [0, 1, 4]]


def test_a_tie_in_one_row_does_not_make_up_for_a_hidden_score_in_another() -> None:
    """Then there are as many hits as there should be, but not in each row."""
    scores = np.array([[2.0, 2.0, 1.0], [2.0, -np.inf, -np.inf]])
    assert mark(scores, np.array([1, 2])) is None
