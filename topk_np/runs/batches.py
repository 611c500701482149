"""Batches of sequences of about one length, so that little is padded."""

from __future__ import annotations

import numpy as np

from topk_np.tasks import Examples

POOL = 16  # batches drawn together and sorted by length


def batch_at(examples: Examples, size: int, /, *, seed: int, step: int) -> Examples:
    """
    The batch of a step: `Examples.batch`, `POOL` at a time, cut into batches of similar lengths.

    It depends on nothing but the arguments, so that training can go on from any step.
    """
    pool = examples.batch(POOL * size, seed=seed, step=step // POOL)
    order = np.argsort(longest(pool), kind="stable")
    turn = np.random.default_rng((seed, step // POOL)).permutation(POOL)[step % POOL]
    return pool[order[turn * size : (turn + 1) * size]]


def longest(examples: Examples) -> np.ndarray:
    """(n,) the length of each example, of a pair that of the longer one."""
    lengths: np.ndarray = examples.lengths.reshape(len(examples), -1).max(axis=1)
    return lengths
