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
