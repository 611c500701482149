"""Examples: batches, splits and guesses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topk_np.tasks import load
from topk_np.tasks.examples import PAD, Examples, guess_by, guess_majority, padded


def some(count: int) -> Examples:
    """Examples whose only token is their number."""
    numbers = np.arange(count)
    return Examples(numbers[:, None], np.ones(count, int), numbers % 3)


@given(count=st.integers(1, 12), size=st.integers(1, 30), seed=st.integers(0, 5))
def test_batches_go_through_all_examples_once_an_epoch(count: int, size: int, seed: int) -> None:
    steps = 3 * count  # as many epochs as 3 batch sizes
    batches = [some(count).batch(size, seed=seed, step=step) for step in range(steps)]
    drawn = np.concatenate([batch.tokens[:, 0] for batch in batches])
    assert all(len(batch) == size for batch in batches)
    for epoch in drawn.reshape(-1, count):
        assert sorted(epoch) == list(range(count))
    again = some(count).batch(size, seed=seed, step=steps - 1)  # with no batch before it
    assert np.array_equal(again.tokens, batches[-1].tokens)


def test_orders_differ_by_seed_and_epoch() -> None:
    orders = {
        tuple(some(50).batch(50, seed=seed, step=step).tokens[:, 0])
        for seed in range(3)
        for step in range(3)
    }
    assert len(orders) == 9


def test_examples_are_as_long_as_the_longest_of_them() -> None:
    tokens, lengths = padded([[1], [1, 2, 3], [4, 5]])
    examples = Examples(tokens, lengths, np.zeros(3, int))
    assert np.array_equal(examples.tokens, [[1, PAD, PAD], [1, 2, 3], [4, 5, PAD]])
    assert np.array_equal(examples[np.array([2, 0])].tokens, [[4, 5], [1, PAD]])
    assert examples[:0].tokens.shape == (0, 1)


def test_guesses_know_what_the_cue_tells_and_nothing_more() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    train = Examples(np.zeros((6, 1)), np.ones(6, int), labels)
    test = Examples(np.zeros((4, 1)), np.ones(4, int), np.array([0, 2, 1, 2]))
    assert guess_majority(train, test) == 0.5
    cues = np.array([7, 7, 7, 9, 9, 9])
    assert guess_by(cues, train, np.array([7, 9, 7, 5]), test) == 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"step": -1}, "step must be at least 0, got -1"),
    ],
)
def test_batch_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        some(3).batch(**{"size": 1, "seed": 0, "step": 0, **arguments})
    with pytest.raises(ValueError, match="examples to draw from, got none"):
        some(3)[:0].batch(1, seed=0, step=0)


def test_a_task_is_loaded_by_name() -> None:
    task = load("listops-16-64", seed=3, train=20, validation=5, test=7)
    assert (task.name, task.classes) == ("listops 16-64", 10)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [20, 5, 7]
    with pytest.raises(ValueError, match=r"name must be one of listops, .*, got 'chess'"):
        load("chess")
