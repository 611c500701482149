"""Our own attention has every property that applies to it."""

from __future__ import annotations

from typing import Any

import pytest

import topk_np
from topk_np.testing import check_attention
from topk_np.testing.strategies import FORMS

OWN: dict[str, dict[str, Any]] = {
    name: {"fwd": getattr(topk_np, f"{name}_fwd"), "bwd": getattr(topk_np, f"{name}_bwd")}
    for name in ("topk_attention", "dense_attention")
}


CASES = [
    *(("topk_attention", dtype) for dtype in ("float16", "bfloat16", "float32", "float64")),
    *(("dense_attention", dtype) for dtype in ("float16", "float64")),
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_it_passes_all_that_applies(name: str, dtype: str) -> None:
    report = check_attention(
        getattr(topk_np, name), **OWN[name], options=FORMS, dtype=dtype, examples=5
    )
    assert report.passed, str(report)
    about_k = ["all_kept", "exactly_k", "ties", "mass", "always_keep"]
    assert report.names("not applicable") == (about_k if name == "dense_attention" else [])
