"""Short heads that are taken together give what they give one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import Backend
from tests.oracles import assert_close
from topk_np import dense_attention_bwd, dense_attention_fwd
from topk_np.dense import stacked


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Query, key, value and dout of a batch of grouped heads, and masks that go by position."""
    batch, groups, heads, queries, keys = (draw(st.integers(1, 3)) for _ in range(5))
    lead = (batch, groups, heads)
    leads = [
        draw(st.sampled_from([lead, (batch, groups, 1), (groups, 1), (1, 1, heads)]))
        for _ in range(2)
    ]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shapes = (*lead, queries, 3), (*leads[0], keys, 3), (*leads[1], keys, 2), (*lead, queries, 2)
    options: dict[str, Any] = {}
    for name, most in (("query_lengths", queries), ("key_lengths", keys)):
        if draw(st.booleans(), label=name):
            options[name] = rng.integers(0, most + 1, draw(st.sampled_from([(), lead, (heads,)])))
            options[name] = options[name] if options[name].shape else int(options[name])
    if draw(st.booleans(), label="band"):
        options["query_offset"] = draw(st.integers(-2, 2))
        options["window"] = draw(st.sampled_from([(None, 0), (1, None), (0, 1), (9, 9)]))
    return [rng.standard_normal(shape) for shape in shapes], options


@given(case=problems(), packed=st.sampled_from([1, 20, 2**16]))
def test_heads_together_equal_heads_one_by_one(xp: Backend, case: Any, packed: int) -> None:
    arrays, options = case
    query, key, value, dout = xp.arrays(*arrays)
    options = xp.options(options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacked, "PACKED_SCORES", packed)
        out, residuals = dense_attention_fwd(query, key, value, **options)
        grads = dense_attention_bwd(residuals, dout)
    assert residuals.stacked == (np.prod(out.shape[:-2]) > 1 and xp.name != "cupy")
    # A chunk size asks for the other way.
    whole = arrays[0].shape[-2]
    wanted, others = dense_attention_fwd(query, key, value, chunk_size=whole, **options)
    assert not others.stacked
    assert_close(xp.to_numpy(out), xp.to_numpy(wanted), size=10.0)
    for grad, other in zip(grads[:3], dense_attention_bwd(others, dout)[:3], strict=True):
        assert_close(xp.to_numpy(grad), xp.to_numpy(other), size=100.0)


@pytest.mark.parametrize(
    ("heads", "queries", "keys", "short"),
    [
        (2, 4, 8, True),
        (2, 256, 256, True),
        (2, 300, 300, False),
        (1, 4, 8, False),
        (2, 0, 8, False),
    ],
)
def test_several_heads_are_taken_together_where_they_are_short(
    heads: int, queries: int, keys: int, short: bool
) -> None:
    query, key = np.ones((heads, queries, 2)), np.ones((heads, keys, 2))
    _, residuals = dense_attention_fwd(query, key, key)
    assert residuals.stacked == short


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["key", "value"])
def test_hidden_keys_that_are_not_finite_add_nothing(bad: float, place: str) -> None:
    rng = np.random.default_rng(0)
    arrays = dict(zip(("query", "key", "value"), rng.standard_normal((3, 2, 2, 3, 2)), strict=True))
    dout, lengths = rng.standard_normal((2, 2, 3, 2)), np.array([[3], [1]])

    def run() -> tuple[np.ndarray, ...]:
        out, residuals = dense_attention_fwd(*arrays.values(), key_lengths=lengths)
        assert residuals.stacked
        return out, *dense_attention_bwd(residuals, dout)[:3]

    clean = run()
    arrays[place][1, :, 2, :] = bad
    for got, wanted in zip(run(), clean, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-14)
    arrays[place][0, 0, 2, :] = bad  # one that is seen
    assert np.isnan(run()[0][0, 0]).any() or np.isinf(run()[0][0, 0]).any()
    assert np.isfinite(run()[0][1]).all()


def test_half_precision_is_computed_in_single() -> None:
    query, key, value, dout = np.random.default_rng(0).standard_normal((4, 2, 3, 5, 4))
    narrow = [array.astype("float16") for array in (query, key, value, dout)]
    out, residuals = dense_attention_fwd(*narrow[:3])
    assert residuals.stacked
    wide, others = dense_attention_fwd(*(array.astype("float64") for array in narrow[:3]))
    grads = (
        dense_attention_bwd(residuals, narrow[3]),
        dense_attention_bwd(others, wide * 0 + narrow[3]),
    )
    for got, wanted in zip((out, *grads[0][:3]), (wide, *grads[1][:3]), strict=True):
        assert got.dtype == np.float16
        assert np.max(np.abs(got - wanted)) <= 2**-11 * 1.01 * np.max(np.abs(wanted))
