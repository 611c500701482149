"""The key-value cache, and decoding through it."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import calls
from tests.backends import Backend
from tests.oracles import assert_close, assert_same_bits
from tests.strategies import AttentionProblem, attention_QND
from topk_np import KVCache, topk_attention

RNG = np.random.default_rng(0)
KEY, VALUE = RNG.standard_normal((2, 1, 9, 3)), RNG.standard_normal((2, 9, 4))

steps = st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=12)


@given(problem=attention_QND(masks=False), data=st.data())
def test_decoding_gives_the_rows_of_the_full_causal_pass(
    xp: Backend, problem: AttentionProblem, data: st.DataObject
) -> None:
    # Decode some positions at a time, the first of them where the cache already has a prompt.
    prompt = problem.keys - min(problem.keys, problem.queries)
    rows = problem.keys - prompt
    problem = replace(
        problem,
        query=problem.query[..., :rows, :],
        dout=problem.dout[..., :rows, :],
        is_causal=True,
        query_offset=prompt,
    )
    full = calls.topk_attention(problem, xp).out
    query, key, value = xp.arrays(*problem.arrays)
    cache = KVCache()
    cache.append(key[..., :prompt, :], value[..., :prompt, :])
    row = 0
    while row < rows:
        size = data.draw(st.integers(1, rows - row))
        offset = len(cache)
        new = slice(offset, offset + size)
        cache.append(key[..., new, :], value[..., new, :])
        out = topk_attention(
            query[..., row : row + size, :],
            cache.key,
            cache.value,
            k=problem.k,
            is_causal=True,
            query_offset=offset,
            scale=problem.scale,
        )
        assert_close(xp.to_numpy(out), full[..., row : row + size, :], size=problem.size)
        row += size


@given(steps=steps, capacity=st.integers(0, 12))
def test_a_cache_holds_what_a_list_of_positions_would(
    xp: Backend, steps: list[tuple[bool, int]], capacity: int
) -> None:
    cache = KVCache(capacity=capacity)
    expected: list[int] = []
    cache.append(*xp.arrays(KEY[..., :0, :], VALUE[..., :0, :]))
    for rewinds, number in steps:
        if rewinds:
            expected = expected[:number]
            cache.truncate(len(expected))
        else:
            expected = expected + list(range(number))
            cache.append(*xp.arrays(KEY[..., :number, :], VALUE[..., :number, :]))
        assert len(cache) == len(expected) <= cache.capacity
        assert_same_bits(xp.to_numpy(cache.key), KEY[..., expected, :])
        assert_same_bits(xp.to_numpy(cache.value), VALUE[..., expected, :])


def test_steps_copy_nothing_until_the_cache_is_full_and_then_room_doubles() -> None:
    cache = KVCache(capacity=4)
    capacities, moves, last = [], 0, None
    for i in range(9):
        cache.append(KEY[..., i : i + 1, :], VALUE[..., i : i + 1, :])
        moves += last is not None and not np.shares_memory(cache.key, last)
        last = cache.key
        capacities.append(cache.capacity)
    assert capacities == [4] * 4 + [8] * 4 + [16]
    assert moves == 2


def test_views_can_not_be_written_to_and_inputs_are_copied() -> None:
    key, value = KEY.copy(), VALUE.copy()
    cache = KVCache()
    cache.append(key, value)
    key[...], value[...] = 0, 0
    assert_same_bits(cache.key, KEY)
    with pytest.raises(ValueError, match="read-only"):
        cache.key[...] = 0


def test_a_cache_can_be_appended_to_itself() -> None:
    cache = KVCache(capacity=18)
    cache.append(KEY, VALUE)
    cache.append(cache.key, cache.value)
    assert_same_bits(cache.key, np.concatenate([KEY, KEY], axis=-2))


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        (KEY[0], VALUE, ValueError, r"key must have the shape of the cache, \(2, 1, n, 3\)"),
        (KEY, VALUE[..., :2], ValueError, r"value must have the shape of the cache, \(2, n, 4\)"),
        (KEY[..., :2, :], VALUE, ValueError, "value's second last axis must be equal to key's, 2"),
        (KEY[0, 0, 0], VALUE, ValueError, r"key must have shape \(..., n, D\)"),
        (
            KEY.astype("f4"),
            VALUE.astype("f4"),
            TypeError,
            "key must have the dtype of the cache, float64, got float32",
        ),
        (KEY, VALUE.tolist(), TypeError, "value must be an array"),
        (KEY.astype(int), VALUE, TypeError, "key must have dtype"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    key: Any, value: Any, error: type[Exception], message: str
) -> None:
    cache = KVCache()
    cache.append(KEY, VALUE)
    with pytest.raises(error, match=message):
        cache.append(key, value)
    assert (len(cache), cache.capacity) == (9, 9)
    assert_same_bits(cache.key, KEY)
    assert_same_bits(cache.value, VALUE)


def test_a_cache_keeps_to_one_library() -> None:
    cache = KVCache()
    cache.append(KEY, VALUE)
    with pytest.raises(TypeError, match="key must come from the array library of the cache's key"):
        cache.append(array_api_strict.asarray(KEY), array_api_strict.asarray(VALUE))


def test_truncate_only_rewinds() -> None:
    cache = KVCache()
    cache.append(KEY, VALUE)
    with pytest.raises(ValueError, match="at most the number of positions kept, 9, got 10"):
        cache.truncate(10)
    with pytest.raises(ValueError, match="length must be at least 0, got -1"):
        cache.truncate(-1)
    with pytest.raises(TypeError, match="length must be an integer"):
        cache.truncate(2.0)  # type: ignore[arg-type]
    assert len(cache) == 9


def test_an_empty_cache_says_so() -> None:
    with pytest.raises(ValueError, match="before the first append"):
        _ = KVCache().key
    with pytest.raises(ValueError, match="capacity must be at least 0, got -1"):
        KVCache(capacity=-1)
    assert repr(KVCache(capacity=3)) == "KVCache(length=0, capacity=3)"


def test_a_step_copies_neither_keys_nor_values() -> None:
    cache = KVCache()
    cache.append(*RNG.standard_normal((2, 3, 2000, 64), dtype=np.float32))
    query = RNG.standard_normal((3, 3, 64), dtype=np.float32)  # the heads of 3 groups
    topk_attention(query, cache.key, cache.value, k=32)  # imports what it needs
    tracemalloc.start()
    topk_attention(query, cache.key, cache.value, k=32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < cache.value.nbytes / 2
