"""Dropout depends on the seed and the place of a weight alone, and drops as many as it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np
from tests.backends import Backend
from tests.oracles import assert_same_bits, dropout_by_loops, threefry_by_ints
from topk_np.options.dropout import Dropout, threefry

WORD = 2**32
words = st.integers(0, WORD - 1)


def signed(number: int) -> np.int32:
    return np.uint32(number).astype(np.int32)


@pytest.mark.parametrize(
    ("key", "counter", "bits"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((WORD - 1, WORD - 1), (WORD - 1, WORD - 1), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_generator_gives_the_known_answers_of_its_authors(
    key: tuple[int, int], counter: tuple[int, int], bits: tuple[int, int]
) -> None:
    made = threefry(
        (int(signed(key[0])), int(signed(key[1]))),
        (np.array([signed(counter[0])]), np.array([signed(counter[1])])),
    )
    assert tuple(int(word[0]) % WORD for word in made) == bits
    assert threefry_by_ints(key, counter) == bits


@given(key=st.tuples(words, words), counter=st.tuples(words, words))
def test_the_generator_is_that_of_pythons_integers(
    xp: Backend, key: tuple[int, int], counter: tuple[int, int]
) -> None:
    x, y = (xp.asarray(np.array([signed(c)])) for c in counter)
    made = threefry((int(signed(key[0])), int(signed(key[1]))), (x, y))
    bits = tuple(int(xp.to_numpy(word)[0]) % WORD for word in made)
    assert bits == threefry_by_ints(key, counter)


@pytest.mark.parametrize("rate", [0.0001, 0.1, 0.5, 0.999])
def test_as_many_are_dropped_as_the_rate_says_and_the_others_make_up_for_it(rate: float) -> None:
    queries, keys = np.arange(1000)[:, None], np.arange(1000)[None, :]
    factors = Dropout(rate, 3).factors(np.zeros((1, 1), int), queries, keys, np.float64)
    spread = np.sqrt(rate * (1 - rate) / factors.size)
    assert abs(np.mean(factors == 0) - rate) < 5 * spread
    assert set(np.unique(factors)) == {0.0, 1 / (1 - rate)}


def test_heads_queries_keys_and_seeds_drop_independently() -> None:
    """Two sets of choices agree as often as by chance."""
    queries, keys = np.arange(300)[:, None], np.arange(300)[None, :]

    def dropped(seed: int, head: int, first: int = 0) -> np.ndarray:
        factors = Dropout(0.5, seed).factors(
            np.full((1, 1), head), queries + first, keys + first, np.float64
        )
        return np.asarray(factors == 0)

    one = dropped(0, 0)
    for other in (dropped(1, 0), dropped(2**32, 0), dropped(0, 1), dropped(0, 0, 300), one.T):
        assert abs(np.mean(one == other) - 0.5) < 5 * 0.5 / 300
    assert np.all(dropped(0, 0, 300)[:0] == one[:0])
    shifted = Dropout(0.5, 0).factors(np.zeros((1, 1), int), queries + 100, keys, np.float64) == 0
    assert np.array_equal(shifted[:200], one[100:])


def test_a_rate_of_zero_drops_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((5, 3))
    plain = topk_np.topk_attention(x, x, x, k=2)
    assert_same_bits(topk_np.topk_attention(x, x, x, k=2, dropout=(0.0, 7)), plain)


def test_a_later_step_drops_what_the_full_pass_drops() -> None:
    """So decoding and the full pass agree; the positions may be anywhere, modulo 2^32."""
    x = np.random.default_rng(0).standard_normal((6, 3))
    options: dict[str, Any] = {"k": 3, "is_causal": True, "dropout": (0.4, 9)}
    full = topk_np.topk_attention(x, x, x, **options)
    step = topk_np.topk_attention(x[4:], x, x, query_offset=4, **options)
    np.testing.assert_allclose(step, full[4:], rtol=1e-12)
    far = topk_np.topk_attention(x, x, x, query_offset=2**70, k=3, dropout=(0.4, 9))
    same = topk_np.topk_attention(x, x, x, query_offset=0, k=3, dropout=(0.4, 9))
    assert_same_bits(far, same)


def test_every_head_drops_its_own_weights(xp: Backend) -> None:
    """Seen through equal scores and values that tell the keys apart; short heads go together."""
    lead, offset = (2, 3), np.arange(6).reshape(2, 3)
    query, key, value = np.zeros((*lead, 4, 2)), np.zeros((7, 2)), np.eye(7)
    options = xp.options({"dropout": (0.4, 5), "query_offset": offset})
    wanted = dropout_by_loops(lead, 4, 7, (0.4, 5), offset) / 7
    arrays = xp.arrays(query, key, value)
    for out in (
        topk_np.dense_attention(*arrays, **options),
        topk_np.topk_attention(*arrays, k=7, **options),
    ):
        np.testing.assert_allclose(xp.to_numpy(out), wanted, rtol=1e-12)
