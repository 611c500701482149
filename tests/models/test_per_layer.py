"""k given once, as a sequence or as a mapping of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topk_np.models.model import per_layer

ks = st.none() | st.integers(1, 2**20)
per_layer_ks = st.lists(ks, min_size=1, max_size=9)


@given(k=ks, layers=st.integers(1, 9))
def test_one_k_is_that_of_every_layer(k: int | None, layers: int) -> None:
    assert per_layer("k", k, layers) == [k] * layers


@given(each=per_layer_ks, data=st.data())
def test_a_sequence_and_mappings_with_and_without_rest_say_the_same(
    each: list[int | None], data: st.DataObject
) -> None:
    layers = len(each)
    rest = data.draw(st.sampled_from(each))
    named: dict[int | str, int | None] = {i: k for i, k in enumerate(each) if k != rest}
    complete: Mapping[int | str, int | None] = dict(enumerate(each))
    for given_k in (each, tuple(each), complete, named | {"rest": rest}):
        assert per_layer("k", given_k, layers) == each


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, "attention_k must be at least 1, got 0"),
        (2.0, TypeError, r"attention_k must be an integer, got 2\.0 \(float\)"),
        (True, TypeError, "attention_k must be an integer, got True"),
        ("64", TypeError, r"attention_k must be an integer, got '64' \(str\)"),
        ([4, 4], ValueError, "attention_k must have an entry for each of 3 layers, got 2"),
        ([4, -1, None], ValueError, r"attention_k\[1\] must be at least 1, got -1"),
        ((4, None, 1.5), TypeError, r"attention_k\[2\] must be an integer, got 1\.5"),
        ({"rest": 0}, ValueError, r"attention_k\['rest'\] must be at least 1, got 0"),
        ({1: "a", "rest": 4}, TypeError, r"attention_k\[1\] must be an integer, got 'a'"),
        ({3: 4, "rest": 4}, ValueError, r'must name layers 0 \.\. 2, or "rest", got 3'),
        ({-1: 4, "rest": 4}, ValueError, r'must name layers 0 \.\. 2, or "rest", got -1'),
        ({"last": 4, "rest": 4}, TypeError, "a layer of attention_k must be an integer"),
        ({0: 4, 2: None}, ValueError, '3 layers or have an entry "rest"; layer 1 has none'),
        ({}, ValueError, "layer 0 has none"),
    ],
)
def test_what_makes_no_sense_is_named(k: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        per_layer("attention_k", k, 3)
