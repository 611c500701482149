"""What only CuPy can show of its engine: launches, memory, copies to the host, equal bits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from tests.kernels.measures import launches, measured, no_copies_to_the_host, usable_cupy
from tests.kernels.stacks import Sparse, sparse_GCN
from tests.oracles import assert_same_bits
from tests.strategies import seeds

cupy = usable_cupy()
engine = importlib.import_module("topk_np.kernels.cupy")

HEADS, ROWS, KEYS, SLOTS, WIDTH = 8, 16, 64, 5, 32
rng = np.random.default_rng(0)


def normal(*shape: int, of: Any = np.float32) -> Any:
    return cupy.asarray(rng.standard_normal(shape).astype(of))


class Stack:
    """Arguments of the primitives, of some heads."""

    def __init__(self, heads: int) -> None:
        self.scores, self.other = normal(heads, ROWS, KEYS), normal(heads, ROWS, KEYS)
        self.allowed = normal(1, ROWS, KEYS) > 0
        self.rows, self.out = normal(heads, ROWS, WIDTH), normal(heads, KEYS, WIDTH)
        self.values = cupy.broadcast_to(normal(1, KEYS, WIDTH), self.out.shape)
        self.weights = normal(heads, ROWS, SLOTS)
        self.indices = engine.select(self.scores, SLOTS).indices
        self.pattern = engine.pattern(self.indices, KEYS)
        self.edges = np.arange(heads), np.arange(heads) + 9
        self.diagonals = normal(heads, ROWS - 1 + KEYS)
        self.scratch: dict[str, Any] = {}
        self.counter = self.indices[:, :, :1], self.indices

    def running(self, *others: Any) -> Any:
        running = engine.RunningTopK(SLOTS, KEYS)
        for start in (0, KEYS // 2):
            block = slice(start, start + KEYS // 2)
            blocks = (array[:, :, block].copy() for array in (self.scores, *others))
            running.add(next(blocks), start, *blocks)
        return running.result(SLOTS)

    def scatter(self, times: int, scatter_matmul: Any = engine.scatter_matmul) -> None:
        pattern = engine.pattern(self.indices, KEYS)
        for _ in range(times):
            scatter_matmul(self.weights, pattern, self.rows, self.out)


# What is done with a stack, and the kernels it takes, however many heads there are.
DONE: dict[str, tuple[Callable[[Stack], Any], int]] = {
    "product": (lambda s: engine.product(s.rows, s.values, 0.5, s.scratch, "scores"), 0),
    "hide": (lambda s: engine.hide(s.scores, s.allowed), 1),
    "hide_outside": (lambda s: engine.hide_outside(s.scores, 0, 9), 1),
    "hide_outside of each": (lambda s: engine.hide_outside(s.scores, *s.edges), 1),
    "tanh": (lambda s: engine.tanh(s.scores), 1),
    "toeplitz": (lambda s: engine.toeplitz(s.diagonals, ROWS), 0),
    "select": (lambda s: engine.select(s.scores, SLOTS), 1),
    "running": (lambda s: s.running(), 2 + 2),  # of which two copy the blocks
    "running with others": (lambda s: s.running(s.other), 2 + 2 + 4),
    "take_slots": (lambda s: engine.take_slots(s.scores, s.indices), 1),
    "gather_matmul": (lambda s: engine.gather_matmul(s.weights, s.pattern, s.values), 1),
    "sampled_matmul": (lambda s: engine.sampled_matmul(s.rows, s.values, s.pattern), 1),
    "atomic scatter": (lambda s: s.scatter(1, engine.atomic.scatter_matmul), 1),
    "add_slots": (lambda s: engine.add_slots(s.weights, s.pattern, s.scores), 1),
    "masked_matmul": (lambda s: engine.masked_matmul(s.scores, s.other, s.values), 1),
    "zero_hidden": (lambda s: engine.zero_hidden(s.scores, s.other), 1),
    "softmax": (lambda s: engine.softmax(s.scores), 1),
    "softmax_vjp": (lambda s: engine.softmax_vjp(s.scores, s.other), 1),
    "relu": (lambda s: engine.relu(s.scores), 1),
    "relu_vjp": (lambda s: engine.relu_vjp(s.scores, s.other), 1),
    "erf": (lambda s: engine.erf(s.scores), 1),
    "threefry": (lambda s: engine.threefry((1, 2), s.counter), 1),
}


@pytest.mark.parametrize("name", DONE)
def test_a_primitive_takes_as_many_kernels_for_all_heads_as_for_one(name: str) -> None:
    done, expected = DONE[name]
    all_heads, one = Stack(HEADS), Stack(1)
    assert launches(lambda: done(all_heads)) == expected
    assert launches(lambda: done(one)) == expected


def test_gradients_that_share_a_pattern_sort_it_once() -> None:
    one, all_heads = Stack(1), Stack(HEADS)
    alone = launches(lambda: one.scatter(1))
    assert launches(lambda: all_heads.scatter(1)) == alone + 1  # that numbers through the heads
    assert launches(lambda: all_heads.scatter(3)) == alone + 3


@pytest.mark.parametrize("name", [*DONE, "scatter_matmul"])
def test_a_primitive_copies_nothing_to_the_host(name: str) -> None:
    stack = Stack(HEADS)
    with no_copies_to_the_host():
        if name in DONE:
            DONE[name][0](stack)
        else:
            stack.scatter(2)


@pytest.mark.parametrize("name", ["product", "gather_matmul", "sampled_matmul", "masked_matmul"])
@pytest.mark.parametrize("layout", ["rows", "columns", "apart"])
def test_matrices_are_read_where_they_lie(name: str, layout: str) -> None:
    """Heads that are the same memory, by row or by column, and heads between the rows."""
    stack, done = Stack(HEADS), DONE[name][0]
    if layout == "columns":
        stack.values = cupy.broadcast_to(normal(1, WIDTH, KEYS), (HEADS, WIDTH, KEYS)).mT
        stack.rows = normal(HEADS, WIDTH, ROWS).mT
        stack.scores = normal(HEADS, KEYS, ROWS).mT
    elif layout == "apart":
        stack.values = normal(KEYS, HEADS, WIDTH).transpose(1, 0, 2)
        stack.rows = normal(ROWS, HEADS, WIDTH).transpose(1, 0, 2)
        stack.scores = normal(ROWS, HEADS, KEYS).transpose(1, 0, 2)
    result, peak = measured(lambda: done(stack))
    assert peak <= result.nbytes + 512  # beside the scratch of a product, which was there before


def test_a_product_drops_its_old_memory_before_it_takes_more() -> None:
    def grow() -> Any:
        scratch: dict[str, Any] = {}
        for rows in (2**8, 2**9, 2**10):
            scores = engine.product(*stacks[rows], 1.0, scratch, "scores")
            del scores
        return scratch["scores"]

    stacks = {rows: (normal(2, rows, 1), normal(2, 2**5, 1)) for rows in (2**8, 2**9, 2**10)}
    result, peak = measured(grow)
    assert peak == result.nbytes


@given(sparse=sparse_GCN(), seed=seeds)
def test_sums_have_the_same_bits_in_a_stack_or_head_by_head_whole_or_in_ranges(
    sparse: Sparse, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weights, indices = cupy.asarray(sparse.weights), cupy.asarray(sparse.indices)
    rows = cupy.asarray(sparse.rows(random, 3))
    start = cupy.asarray(random.standard_normal((len(sparse.indices), sparse.keys, 3)))
    pattern = engine.pattern(indices, sparse.keys)
    whole = engine.scatter_matmul(weights, pattern, rows, start.copy())
    again = engine.scatter_matmul(weights, pattern, rows, start.copy())
    assert_same_bits(cupy.asnumpy(whole), cupy.asnumpy(again))
    for head in range(len(indices)):
        one = slice(head, head + 1)
        pattern_of_one = engine.pattern(indices[one], sparse.keys)
        out = engine.scatter_matmul(weights[one], pattern_of_one, rows[one], start[one].copy())
        assert_same_bits(cupy.asnumpy(out), cupy.asnumpy(whole[one]))
    for first in range(sparse.keys):
        out = start[:, first : first + 2].copy()
        engine.scatter_matmul(weights, pattern, rows, out, first)
        assert_same_bits(cupy.asnumpy(out), cupy.asnumpy(whole[:, first : first + 2]))
