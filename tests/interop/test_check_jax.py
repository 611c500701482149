"""JAX's own attention put to the test."""

from __future__ import annotations

from typing import Any

import pytest

from topk_np.testing import Report, check_attention

jax = pytest.importorskip("jax", reason="JAX is not installed; `make peers` installs it")

PROMISED = ("values", "scale", "extreme", "poisoned", "mask", "causal", "kind", "gradients")
LACKING = ("masked_rows", "masked_nan")


def attention(
    query: Any, key: Any, value: Any, mask: Any = None, is_causal: bool = False, scale: Any = None
) -> Any:
    """JAX's attention, which has heads behind the rows and wants values as wide as keys."""
    width, value_width = query.shape[-1], value.shape[-1]
    scale = width**-0.5 if scale is None else scale
    query, key, value = (
        jax.numpy.pad(array, [(0, 0)] * 3 + [(0, max(width, value_width) - array.shape[-1])])
        for array in (query, key, value)
    )
    arrays = (array.swapaxes(-2, -3) for array in (query, key, value))
    out = jax.nn.dot_product_attention(*arrays, mask=mask, is_causal=is_causal, scale=scale)
    return out.swapaxes(-2, -3)[..., :value_width]


def check(only: tuple[str, ...], examples: int) -> Report:
    """A check of few problems: JAX compiles every operation anew for every shape."""
    return check_attention(
        attention,
        library="jax",
        dtype="float32",
        leading_axes=2,
        max_length=3,
        examples=examples,
        only=only,
    )


def test_attention_has_what_it_promises() -> None:
    report = check(PROMISED, examples=3)
    assert set(report.names("passed")) == set(PROMISED), str(report)


def test_attention_lets_a_masked_nan_through_and_averages_where_all_is_masked() -> None:
    report = check(LACKING, examples=20)
    assert set(report.names("failed")) == set(LACKING), str(report)
