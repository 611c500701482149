"""What queries keep of keys that are seen block by block, with floors that are guessed at first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np
import topk_np.chunking
from tests.oracles import assert_same_bits
from topk_np.selection import KBest


@pytest.fixture(scope="module", autouse=True)
def blocks_of_few_keys() -> Iterator[None]:
    """Blocks of 2 k keys, and chunks of 8 queries."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "BLOCK_SCORES": 1,
            "FEW_MORE": 0,
            "LONG": 2,
            "MOST_QUERIES": 8,
            "SHORT_SCORES": 0,
        }.items():
            patch.setattr(topk_np.chunking, name, value)
        yield


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """Of each chunk's k best, whether their floor was guessed, and whether they were sure."""
    said: list[tuple[bool, bool]] = []
    ask = vars(KBest)["sure"].fget

    def heard(best: KBest) -> bool:
        said.append((best._columns is not None, ask(best)))
        return said[-1][1]

    monkeypatch.setattr(KBest, "sure", property(heard))
    return said


def indices_of(arrays: Any, **options: Any) -> np.ndarray:
    _, residuals = topk_np.topk_attention_fwd(*arrays, **options)
    return np.asarray(residuals.indices)


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
    found = indices_of((query, key, key), k=k, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk_np.chunking, "BLOCK_SCORES", 2**20)
        patch.setitem(os.environ, "TOPK_NP_KERNELS", "portable")
        assert_same_bits(found, indices_of((query, key, key), k=k, **options))


@pytest.mark.parametrize("causal", [False, True])
def test_floors_are_guessed_where_all_queries_see_the_first_block(
    sure: list[tuple[bool, bool]], causal: bool
) -> None:
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((3, 512, 8))
    indices_of(arrays, k=16, is_causal=causal)
    guessed = [one for was_guessed, one in sure if was_guessed]
    assert len(guessed) > 50
    assert all(guessed)
    assert len(sure) - len(guessed) == (4 if causal else 0)  # of 64 chunks, which see one block


def test_all_is_seen_again_where_a_guess_was_wrong(sure: list[tuple[bool, bool]]) -> None:
    rng = np.random.default_rng(0)
    query, key = rng.random((8, 4)), rng.random((512, 4))
    key = key[np.argsort(-key.sum(axis=1))]
    found = indices_of((query, key, key), k=16)
    assert sure == [(True, False)]
    expected = np.argsort(-(query @ key.T), axis=1)[:, :16]
    np.testing.assert_array_equal(found, np.sort(expected, axis=1))


@pytest.mark.parametrize(
    "options",
    [
        {"mask": np.arange(512) % 3 > 0},
        {"always_keep": (1, 2)},
        {"k": None, "p": 0.5, "max_k": 16},
        {"window": (100, 100), "query_offset": 100},
    ],
    ids=["mask", "always_keep", "p", "window"],
)
def test_nothing_is_guessed_of_keys_that_may_be_hidden(
    sure: list[tuple[bool, bool]], options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((3, 512, 8))
    indices_of(arrays, **{"k": 16, **options})
    assert sure
    assert not any(guessed for guessed, _ in sure)
