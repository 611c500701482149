"""Diagnostics stream too: nothing of Q x N elements exists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import topk_np
from tests.test_memory import LENGTH, MIB, assert_within, measured, nbytes
from topk_np import diagnostics

BUDGET = 12 * MIB
OPTIONS: dict[str, dict[str, Any]] = {
    "positions": {
        "is_causal": True,
        "window": (None, 9),
        "bias": topk_np.ALiBi(np.asarray(0.1, np.float32)),
        "always_keep": (4, 64),
    },
    "functions": {
        "mask": lambda i, j: (i - j) % 3 != 1,
        "bias": lambda i, j: -(j % 3),
        "softcap": 3.0,
        "key_lengths": LENGTH - 7,
    },
}


def normal(length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((length, 8)).astype(np.float32)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["kept_mass", "keys_for_mass", "error_bound"])
def test_measures_stay_within_their_budget(name: str, options: dict[str, Any]) -> None:
    def measure(x: np.ndarray, **more: Any) -> np.ndarray:
        if name == "error_bound":
            return np.asarray(diagnostics.error_bound(x, x, x, k=8, **more))
        if name == "kept_mass":
            return np.asarray(diagnostics.kept_mass(x, x, k=[2, 8], **more))
        return np.asarray(diagnostics.keys_for_mass(x, x, mass=0.9, **more))

    measure(normal(9))
    budget: dict[str, Any] = {"memory_budget": BUDGET, "workers": 2}
    result, peak = measured(lambda: measure(normal(), **{**options, **budget}))
    assert_within(peak, nbytes(result) + nbytes(normal()), BUDGET)


@pytest.fixture(scope="module")
def residuals() -> Any:
    """Two heads, the second on the first one's keys."""
    x = normal().reshape(1, LENGTH, 8)
    query = np.concatenate([x, -x])
    return topk_np.topk_attention_fwd(query, x, x, k=16)[1]


def test_recall_needs_little_beside_two_selections(residuals: Any) -> None:
    diagnostics.recall(residuals.indices[:, :9], residuals.indices[:, :9])
    shares, peak = measured(lambda: diagnostics.recall(residuals.indices, residuals.indices))
    assert_within(peak, nbytes(shares), 12 * MIB)
    longer = np.tile(residuals.indices, (8, 1, 1))
    shares, peak_of_longer = measured(lambda: diagnostics.recall(longer, longer))
    assert_within(peak_of_longer, nbytes(shares), peak)


def test_a_sparse_matrix_and_its_picture_need_a_few_times_what_one_head_kept(
    residuals: Any,
) -> None:
    one = residuals.nbytes / 2
    Figure().subplots().imshow([[1.0]])
    diagnostics.plot_attention(residuals, cells=8, ax=Figure().subplots())
    _, peak = measured(lambda: diagnostics.attention_csr(residuals, head=(0,)))
    assert peak < 5 * one
    ax = Figure().subplots()
    _, peak = measured(lambda: diagnostics.plot_attention(residuals, cells=128, ax=ax))
    assert peak < 6 * one + MIB
    assert 8 * one < LENGTH**2 / 2  # far less than a byte for each pair
