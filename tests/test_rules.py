"""Which keys are kept: by k or p, beside those always kept; number by number."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import topk_np
from tests.backends import Backend
from tests.oracles import softmax_by_loops

pytestmark = pytest.mark.usefixtures("tiny_plans")

QUERIES, KEYS = 6, 11


def test_padding_changes_nothing_of_what_is_kept(xp: Backend) -> None:
    rng = np.random.default_rng(0)
    key = rng.standard_normal((1, 10, 3))
    options: dict[str, Any] = {"k": 1, "query_offset": 8, "always_keep": (0, 2)}
    short = xp.arrays(key[:, :1], key[:, :3], key[:, :3])
    _, residuals = topk_np.topk_attention_fwd(*short, **options)
    padded = xp.arrays(key[:, :1], key, key)
    lengths = xp.asarray(np.array([3], np.uint8))
    _, other = topk_np.topk_attention_fwd(*padded, **options, key_lengths=lengths)
    wanted = xp.to_numpy(residuals.indices).tolist()
    assert xp.to_numpy(other.indices).tolist() == wanted == [[[0, 1, 2]]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_as_many_are_kept_as_hold_the_share_however_many_that_is(xp: Backend, dtype: str) -> None:
    def kept(scores: np.ndarray, p: float, most: int) -> int:
        query, key = xp.arrays(np.ones((1, 1), dtype), scores.astype(dtype)[:, None])
        options: dict[str, Any] = {"p": p, "max_k": most, "scale": 1.0}
        _, residuals = topk_np.topk_attention_fwd(query, key, key, **options)
        return int(np.count_nonzero(xp.to_numpy(residuals.indices) >= 0))

    assert kept(np.zeros(50), 1e-300, 50) == 1
    assert kept(np.zeros(5000), 1.0, 5000) == 5000
    assert kept(np.zeros(5000), 1.0, 30) == 30
    assert kept(np.array([0.0, -80.0, -80.0]), 1.0, 3) == 3  # though one weight is 1, rounded
    if xp.name == "numpy":
        scores = np.full(20_000, -17.0)
        scores[0] = 0
        weights = np.exp(scores) / np.exp(scores).sum()
        wanted = 1 + int(np.ceil((0.9993 - weights[0]) / weights[1]))
        assert abs(kept(scores, 0.9993, 20_000) - wanted) <= 10  # a weight is 4e-8


def kept_by_loops(scores: np.ndarray, i: int, rule: dict[str, Any], always: Any) -> list[int]:
    """The keys that the query at position i keeps, in order; its scores are all different."""
    sinks, local = always
    weights = softmax_by_loops(list(scores))
    before = [j for j in range(len(scores)) if j <= i]
    kept = set(range(sinks)) | set(before[::-1][:local])
    most = rule["k"] if "k" in rule else rule["max_k"]
    for j in sorted(range(len(scores)), key=lambda j: -scores[j]):
        if j in kept:
            continue
        if most == 0 or sum(weights[j] for j in kept) >= rule.get("p", 2):
            break
        kept.add(j)
        most -= 1
    return sorted(kept)


@pytest.mark.parametrize("always", [(0, 0), (2, 0), (0, 3), (1, 2), (4, 4)])
@pytest.mark.parametrize("rule", [{"k": 3}, {"p": 0.6, "max_k": 4}, {"p": 0.9, "max_k": 30}])
def test_the_best_are_kept_beside_those_that_always_are(
    xp: Backend, rule: dict[str, Any], always: tuple[int, int]
) -> None:
    for seed, offset in itertools.product(range(3), (0, 4, 7)):
        rng = np.random.default_rng(seed)
        query, key = rng.standard_normal((QUERIES, 4)), rng.standard_normal((KEYS, 4))
        given = xp.arrays(query, key, key)
        _, residuals = topk_np.topk_attention_fwd(
            *given, **rule, always_keep=always, query_offset=offset, scale=1.0
        )
        indices = xp.to_numpy(residuals.indices)
        for i, row in enumerate(indices):
            wanted = kept_by_loops(key @ query[i], i + offset, rule, always)
            assert row[row >= 0].tolist() == wanted


def test_short_heads_taken_together_always_keep_their_own_keys(xp: Backend) -> None:
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((20, 2, 4)), rng.standard_normal((20, 7, 4))
    offsets = np.arange(20) % 6
    options: dict[str, Any] = {"k": 1, "always_keep": (1, 2)}
    given = xp.arrays(query, key, key)
    _, together = topk_np.topk_attention_fwd(*given, **options, query_offset=xp.asarray(offsets))
    for head, offset in enumerate(offsets.tolist()):
        own = xp.arrays(query[head], key[head], key[head])
        _, alone = topk_np.topk_attention_fwd(*own, **options, query_offset=offset)
        found, wanted = (xp.to_numpy(residuals.indices) for residuals in (together, alone))
        np.testing.assert_array_equal(found[head], wanted)
        assert set(offset + np.arange(2)) <= set(found[head].ravel().tolist())
