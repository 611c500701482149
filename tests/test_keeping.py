"""Blocks of keys one after the other give what all keys at once give."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np
from tests.oracles import assert_same_bits
from topk_np.kernels import tuning

FEW = replace(tuning.Tuning(), block_scores=1, few_more=0, long_block=2, most_queries=8)
"""Blocks of 2 k keys, and chunks of 8 queries."""


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Masks by position and by length, and none."""
    given = draw(st.sampled_from(["nothing", "causal", "window", "key_lengths", "query_lengths"]))
    if given == "causal":
        return {"is_causal": True, "query_offset": draw(st.integers(0, 200))}
    if given == "window":
        left, right = draw(st.integers(0, 200)), draw(st.none() | st.integers(0, 200))
        return {"window": (left, right), "query_offset": draw(st.integers(-20, 200))}
    return {} if given == "nothing" else {given: draw(st.integers(0, 12))}


@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(8, 20),
    order=st.sampled_from(["chance", "rising", "falling"]),
    options=options(),
)
def test_blocks_of_keys_give_the_keys_that_all_at_once_give(
    seed: int, k: int, order: str, options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(seed)
    query = rng.integers(1, 4, size=(12, 3)).astype(float)
    key = rng.integers(-3, 4, size=(300, 3)).astype(float)
    if "key_lengths" in options:
        options["key_lengths"] *= 25
    if order != "chance":
        key = key[np.argsort(key.sum(axis=1) * (1 if order == "rising" else -1))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "current", FEW)
        _, cut = topk_np.topk_attention_fwd(query, key, key, k=k, **options)
    assert cut.schedule.key_block == 2 * k
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TOPK_NP_KERNELS", "portable")
        _, whole = topk_np.topk_attention_fwd(query, key, key, k=k, **options)
    assert_same_bits(cut.indices, whole.indices)
