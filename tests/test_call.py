"""What a call holds are views of the caller's arrays, with batch axes joined where that is free."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topk_np
from topk_np.options.bias import ArrayBias
from topk_np.options.call import Call
from topk_np.options.check import attention_call, ffn_call
from topk_np.options.chunk import Batch, Chunk, Heads
from topk_np.options.masks import Mask
from topk_np.options.relative import TableBias

Shape = tuple[int, ...]


@st.composite
def arrays_of_a_batch(draw: st.DrawFn) -> tuple[Shape, list[np.ndarray]]:
    """Leading axes, and arrays (..., 2, 3) of all numbers whose axes broadcast, in any order."""
    lead = tuple(draw(st.lists(st.integers(1, 3), max_size=4)))
    arrays = []
    for _ in range(draw(st.integers(1, 3))):
        own = tuple(n if draw(st.booleans()) else 1 for n in lead)
        own = own[draw(st.integers(0, len(own))) :]
        order = draw(st.permutations(range(len(own) + 2)))
        shape = (*own, 2, 3)
        laid_out = np.arange(math.prod(shape)).reshape([shape[axis] for axis in order])
        arrays.append(laid_out.transpose(np.argsort(order)))
    return lead, arrays


@given(given=arrays_of_a_batch())
def test_folded_arrays_are_views_that_broadcast_as_before(
    given: tuple[Shape, list[np.ndarray]],
) -> None:
    lead, arrays = given
    for batch in (Batch.of(lead, arrays), Batch.apart(lead)):
        assert math.prod(batch.shape) == math.prod(lead)
        assert 1 <= len(batch.shape) <= max(len(lead), 1)
        for array in arrays:
            folded = batch.fold(np, array)
            assert folded.ndim == len(batch.shape) + 2
            assert np.shares_memory(folded, array)
            whole = np.broadcast_to(folded, (*batch.shape, 2, 3)).reshape(*lead, 2, 3)
            np.testing.assert_array_equal(whole, np.broadcast_to(array, (*lead, 2, 3)))
            np.testing.assert_array_equal(
                batch.unfold(np, whole.reshape(*batch.shape, 2, 3)), whole
            )


@given(given=arrays_of_a_batch())
def test_axes_that_could_be_joined_without_a_copy_are(
    given: tuple[Shape, list[np.ndarray]],
) -> None:
    lead, arrays = given
    batch = Batch.of(lead, arrays)
    for left in range(len(batch.shape) - 1):
        shape = [*batch.shape[:left], math.prod(batch.shape[left : left + 2])]
        shape += batch.shape[left + 2 :]
        views = []
        for array in arrays:
            folded = batch.fold(np, array)
            ends = folded.shape[left : left + 2]
            full = batch.shape[left : left + 2]
            whole = math.prod(ends)
            joined = folded.reshape(*folded.shape[:left], whole, *folded.shape[left + 2 :])
            broadcasts = whole in (1, math.prod(full))
            views.append(broadcasts and np.shares_memory(joined, array))
        # Where one axis has length 1 in the batch it is no axis of its own.
        assert not all(views)


@given(given=arrays_of_a_batch(), data=st.data())
def test_the_heads_of_a_chunk_are_those_of_the_broadcast_array(
    given: tuple[Shape, list[np.ndarray]], data: st.DataObject
) -> None:
    lead, arrays = given
    batch = Batch.of(lead, arrays)
    axis = data.draw(st.integers(0, len(batch.shape) - 1))
    first = tuple(data.draw(st.integers(0, n - 1)) for n in batch.shape)
    number = data.draw(st.integers(1, batch.shape[axis] - first[axis]))
    chunk = Chunk(Heads(first, axis, number), slice(0, 2))
    place: list[Any] = [*first[:axis], slice(first[axis], first[axis] + number), *first[axis + 1 :]]
    for array in arrays:
        folded = batch.fold(np, array)
        stack = chunk.stack(folded)
        whole = np.broadcast_to(folded, (*batch.shape, 2, 3))
        np.testing.assert_array_equal(stack, whole[tuple(place)])
        assert np.shares_memory(stack, array)
        pairs = chunk.pairs(folded, slice(1, 3))
        np.testing.assert_array_equal(np.broadcast_to(pairs, (number, 2, 2)), stack[..., 1:3])
        assert np.shares_memory(pairs, array)


@given(given=arrays_of_a_batch(), data=st.data())
def test_numbers_of_heads_follow_their_heads(
    given: tuple[Shape, list[np.ndarray]], data: st.DataObject
) -> None:
    lead, arrays = given
    batch = Batch.of(lead, arrays)
    shape = tuple(n if data.draw(st.booleans()) else 1 for n in lead)
    numbers = np.random.default_rng(0).integers(0, 5, shape)
    folded = batch.fold_numbers(numbers)
    whole = np.broadcast_to(numbers, lead).reshape(batch.shape)
    np.testing.assert_array_equal(folded, whole)
    assert batch.fold_numbers(7) == 7
    for axis, length in enumerate(batch.shape):
        first = tuple(0 if i == axis else n - 1 for i, n in enumerate(batch.shape))
        own = Chunk(Heads(first, axis, length), slice(0, 1)).numbers(folded)
        place: tuple[Any, ...] = tuple(slice(None) if i == axis else n for i, n in enumerate(first))
        expected = whole[place].tolist()
        assert own == (expected if len(set(expected)) > 1 else expected[:1])


def split(tokens: np.ndarray, heads: int) -> np.ndarray:
    """Tokens (..., T, H D) as heads (..., H, T, D), a view."""
    return tokens.reshape(*tokens.shape[:-1], heads, -1).swapaxes(-2, -3)


TOKENS = np.random.default_rng(0).standard_normal((2, 10, 12)).astype(np.float32)
HEADS: dict[str, tuple[np.ndarray, np.ndarray, Shape]] = {
    "plain": (np.ones((2, 3, 10, 4)), np.ones((2, 3, 10, 4)), (6,)),
    "one head": (np.ones((10, 4)), np.ones((10, 4)), (1,)),
    "split heads": (split(TOKENS, 3), split(TOKENS, 3), (2, 3)),
    "grouped heads": (np.ones((2, 3, 4, 10, 4)), np.ones((2, 3, 1, 10, 4)), (6, 4)),
    "multi-query heads": (np.ones((2, 3, 10, 4)), np.ones((2, 1, 10, 4)), (2, 3)),
    "keys of all": (np.ones((2, 3, 10, 4)), np.ones((10, 4)), (6,)),
    "grouped and split": (
        split(TOKENS, 6).reshape(2, 3, 2, 10, 2),
        split(TOKENS[..., :6], 3)[:, :, None],
        (2, 3, 2),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_any_layout_are_never_copied(name: str) -> None:
    query, key, shape = HEADS[name]
    call = attention_call(query, key, key, (3, None, None))
    assert call.batch.shape == shape
    for own, given_array in ((call.query, query), (call.key, key), (call.value, key)):
        assert np.shares_memory(own, given_array)
        assert own.size == given_array.size


MASKS: dict[str, Shape] = {
    "pairs": (10, 10),
    "keys": (10,),
    "of a batch": (2, 1, 1, 10),
    "of a head": (3, 1, 10),
    "of each head": (2, 3, 10, 10),
    "scalar": (),
}


def option(call: Call, kind: type) -> Any:
    return next(one for one in call.options if isinstance(one, kind))


@pytest.mark.parametrize("name", MASKS)
def test_masks_and_biases_that_broadcast_are_never_copied(name: str) -> None:
    x = np.ones((2, 3, 10, 4))
    mask, bias = np.ones(MASKS[name], bool), np.ones(MASKS[name])
    call = attention_call(x, x, x, (3, None, None), mask=mask, bias=bias)
    pairs, added = option(call, Mask).pairs, option(call, ArrayBias).array
    for own, given_array in ((pairs, mask), (added, bias)):
        assert np.shares_memory(own, given_array)
        assert own.size == given_array.size
        assert np.broadcast_shapes(own.shape, (*call.batch.shape, 10, 10))


def test_the_table_of_a_bias_alone_may_be_copied_so_that_axes_join() -> None:
    """It is small; heads in its last axis must come first."""
    x = np.ones((2, 3, 10, 4))
    bias = topk_np.T5Bias(np.ones((8, 2, 3)), max_distance=9)
    call = attention_call(x, x, x, (3, None, None), bias=bias)
    assert call.batch.shape == (6,)
    assert option(call, TableBias).array.shape[0] == 6


def test_a_feed_forward_call_holds_views() -> None:
    x, keys = np.ones((2, 5, 4)), np.ones((7, 4))
    call = ffn_call(x, keys, keys, (3,), "relu", keys[:, 0], keys[0], keys)
    assert call.queries == 10
    for own, given_array in (
        (call.query, x),
        (call.key, keys),
        (call.value, keys),
        (call.gate, keys),
        (call.key_bias, keys),
        (call.value_bias, keys),
    ):
        assert np.shares_memory(own, given_array)


def test_no_pass_writes_to_what_a_call_holds() -> None:
    """Read-only arrays are enough, whatever the options."""
    x = TOKENS.copy()
    x.flags.writeable = False
    heads = split(x, 3)
    out, residuals = topk_np.topk_attention_fwd(heads, heads, heads, k=3, is_causal=True)
    topk_np.topk_attention_bwd(residuals, out)
    np.testing.assert_array_equal(x, TOKENS)
