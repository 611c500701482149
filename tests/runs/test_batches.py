"""Batches of about one length: every example once an epoch, each batch by its number alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from topk_np.runs.classifying import POOL, batch_at, longest
from topk_np.tasks import Examples


@given(
    size=st.integers(1, 3), epochs=st.integers(1, 3), pairs=st.booleans(), seed=st.integers(0, 9)
)
def test_an_epoch_takes_every_example_once_in_batches_of_similar_lengths(
    size: int, epochs: int, pairs: bool, seed: int
) -> None:
    rng, count = np.random.default_rng(seed), 2 * POOL * size
    shape = (count, 2) if pairs else (count,)
    lengths = rng.integers(1, 9, shape)
    examples = Examples(rng.integers(1, 5, (*shape, 8)), lengths, np.arange(count))
    batches = [batch_at(examples, size, seed=seed, step=i) for i in range(2 * POOL * epochs)]
    for epoch in range(epochs):
        drawn = batches[2 * POOL * epoch : 2 * POOL * (epoch + 1)]
        seen = np.concatenate([batch.labels for batch in drawn])
        assert sorted(seen.tolist()) == list(range(count))
        for half in (drawn[:POOL], drawn[POOL:]):
            ranges = sorted((longest(b).min(), longest(b).max()) for b in half)
            assert all(high <= low for (_, high), (low, _) in pairwise(ranges))
    again = batch_at(examples, size, seed=seed, step=1)
    assert again.tokens.tobytes() == batches[1].tokens.tobytes()
    assert again.tokens.shape[-1] == again.lengths.max()
