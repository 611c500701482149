"""PyTorch's own attention and top-k put to the test."""

from __future__ import annotations

from typing import Any

import pytest

from topk_np.testing import check_attention, check_topk

torch = pytest.importorskip("torch", reason="PyTorch is not installed; `make peers` installs it")


def attention(
    query: Any, key: Any, value: Any, mask: Any = None, is_causal: bool = False, scale: Any = None
) -> Any:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention_has_what_it_promises_and_lets_a_masked_nan_through(dtype: str) -> None:
    report = check_attention(attention, library="torch", dtype=dtype, examples=20)
    assert set(report.names("failed")) == {"poisoned", "masked_nan", "gradients_masked_nan"}, str(
        report
    )
    promised = ("values", "scale", "mask", "causal", "long", "gradients", "gradients_long")
    assert set(promised) <= set(report.names("passed"))
    assert "should not be set when is_causal=True" in report["together"].message


def test_topk_breaks_ties_in_an_order_of_its_own() -> None:
    report = check_topk(torch.topk, library="torch", examples=20)
    assert report.names("failed") == ["ties"], str(report)
