"""Pathfinder: labels are what a flood along the curves finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from topk_np.tasks.pathfinder import BLANK, DASH, DOT, draw, pathfinder


@settings(max_examples=5)
@given(side=st.sampled_from([20, 32]), count=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_flood_along_the_curves_joins_the_dots_where_the_label_says_so(
    side: int, count: int, seed: int
) -> None:
    drawings = draw(count, side, np.random.default_rng(seed))
    assert drawings.labels.tolist() == [i % 2 for i in range(count)]
    for picture, curves, dots, label in zip(*drawings, strict=False):
        regions, found = ndimage.label(curves, structure=np.ones((3, 3)))
        assert found == 2 + side // 8  # the long ones and those that distract, none touching
        one, other = (regions[tuple(dot)] for dot in dots)
        assert 0 not in (one, other)
        assert (one == other) == label
        assert curves[picture == DASH].all()
        assert set(np.unique(picture)) == {BLANK, DASH, DOT}
        assert (curves & (picture == BLANK)).any()  # dashed


def test_pictures_are_balanced_distinct_and_decided_by_the_seed() -> None:
    one, same, other = (
        pathfinder(20, train=20, validation=4, test=6, seed=seed) for seed in (1, 1, 2)
    )
    parts = (one.train, one.validation, one.test)
    assert [int(part.labels.sum()) for part in parts] == [10, 2, 3]
    assert len(np.unique(np.concatenate([part.tokens for part in parts]), axis=0)) == 30
    assert np.array_equal(one.test.tokens, same.test.tokens)
    assert not np.array_equal(one.test.tokens, other.test.tokens)
    with pytest.raises(ValueError, match="side must be at least 16, got 15"):
        pathfinder(15)
