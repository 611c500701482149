"""Recomputation of any pair of functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.oracles import assert_same_bits
from topk_np import topk_attention_bwd, topk_attention_fwd
from topk_np.layers import dropout_bwd, dropout_fwd, recomputed


def test_a_recomputed_pair_gives_the_same_bits_and_keeps_nothing() -> None:
    arrays = np.random.default_rng(0).standard_normal((3, 6, 4))
    options: dict[str, Any] = {"k": 2, "dropout": (0.5, 1)}
    fwd, bwd = recomputed(topk_attention_fwd, topk_attention_bwd)
    out, residuals = fwd(*arrays, **options)
    wanted, kept = topk_attention_fwd(*arrays, **options)
    assert residuals.nbytes == 0 < kept.nbytes
    assert_same_bits(out, wanted)
    for one, other in zip(bwd(residuals, out), topk_attention_bwd(kept, out), strict=True):
        assert_same_bits(one, other)


def test_the_forward_function_runs_once_more_for_each_way_back() -> None:
    calls = []

    def counted(x: Any, **options: Any) -> Any:
        calls.append(options)
        return dropout_fwd(x, **options)

    fwd, bwd = recomputed(counted, dropout_bwd)
    out, residuals = fwd(np.ones(8), rate=0.5, seed=3)
    assert len(calls) == 1
    for _ in range(2):
        assert_same_bits(bwd(residuals, np.ones(8)), out)
    assert calls == [{"rate": 0.5, "seed": 3}] * 3


def test_residuals_of_another_function_are_refused() -> None:
    _, bwd = recomputed(dropout_fwd, dropout_bwd)
    out, kept = dropout_fwd(np.ones(8), rate=0.5, seed=3)
    other: Any = kept
    with pytest.raises(TypeError, match="residuals must come from the forward function of this"):
        bwd(other, out)


def test_what_cannot_be_called_is_refused() -> None:
    other: Any = 3
    with pytest.raises(TypeError, match="bwd must be callable, got int"):
        recomputed(dropout_fwd, other)
