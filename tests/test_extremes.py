"""Sizes and numbers at the edge of sense: a right answer, whatever the options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import topk_np
from tests.backends import Backend
from tests.oracles import Array

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "window": {"window": (1, 0)},
    "lengths": {"query_lengths": 0, "key_lengths": 0},
    "mask function": {"mask": lambda i, j: j <= i},
    "bias": {"bias": "zeros"},
    "scalar bias": {"bias": "scalar"},
    "ALiBi": {"bias": "alibi"},
    "T5": {"bias": "t5"},
    "bias function": {"bias": lambda i, j: i - j},
    "softcap": {"softcap": 2.0},
    "dropout": {"dropout": (0.5, 0)},
    "always keep": {"always_keep": (2, 2)},
    "log-sum-exp": {"return_lse": True},
}
RULES: dict[str, dict[str, Any]] = {"dense": {}, "k": {"k": 3}, "p": {"p": 0.5, "max_k": 3}}


def run(
    xp: Backend,
    shapes: tuple[tuple[int, ...], ...],
    options: dict[str, Any],
    rule: str,
    fill: float,
) -> tuple[Array, Any]:
    """Output and gradients as NumPy arrays, of inputs that are all the same number."""
    query, key, value = (np.full(shape, fill) for shape in shapes)
    lead = np.broadcast_shapes(*(shape[:-2] for shape in shapes))
    forms = {
        "zeros": np.zeros((*lead, query.shape[-2], key.shape[-2])),
        "scalar": np.zeros(()),
        "alibi": topk_np.ALiBi(np.ones(lead[-1:])),
        "t5": topk_np.T5Bias(np.ones((4, *lead[-1:])), max_distance=4),
    }
    given: dict[str, Any] = {"query_offset": 1, **options}
    if isinstance(given.get("bias"), str):
        given["bias"] = forms[given["bias"]]
    name = "dense_attention" if rule == "dense" else "topk_attention"
    arrays = xp.arrays(query, key, value)
    out, residuals = getattr(topk_np, name + "_fwd")(*arrays, **xp.options(given), **RULES[rule])
    grads = getattr(topk_np, name + "_bwd")(residuals, out)
    out = out[0] if isinstance(out, tuple) else out
    return xp.to_numpy(out), [None if grad is None else xp.to_numpy(grad) for grad in grads]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    "sizes",
    [(0, 3, 4, 2, 2), (2, 0, 4, 2, 2), (2, 3, 0, 2, 2), (2, 3, 4, 0, 2), (2, 3, 4, 2, 0), (0,) * 5],
    ids=["no heads", "no queries", "no keys", "no width", "no values", "nothing"],
)
def test_axes_of_length_zero_give_what_they_should(
    xp: Backend, sizes: tuple[int, ...], name: str, rule: str
) -> None:
    heads, queries, keys, width, value_width = sizes
    shapes = (heads, queries, width), (heads, keys, width), (heads, keys, value_width)
    out, grads = run(xp, shapes, OPTIONS[name], rule, 1.0)
    assert out.shape == (heads, queries, value_width)
    assert np.all(np.isfinite(out))
    if keys == 0:
        assert np.all(out == 0)
    for grad, shape in zip(grads, shapes, strict=False):
        assert grad.shape == shape
        assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("fill", [np.nan, np.inf])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", OPTIONS)
def test_nan_and_infinity_everywhere_show_in_every_row_that_sees_a_key(
    xp: Backend, name: str, rule: str, fill: float
) -> None:
    shapes = (2, 3, 2), (2, 4, 2), (2, 4, 1)
    out, _ = run(xp, shapes, OPTIONS[name], rule, fill)
    if name == "lengths":
        assert np.all(out == 0)
    elif name == "dropout":
        dropped_whole_rows_only = np.isnan(out) | (out == 0)
        assert np.all(dropped_whole_rows_only)
    else:
        assert not np.any(np.isfinite(out))


@pytest.mark.parametrize("rule", ["k", "p"])
def test_a_single_query_of_ten_million_keys(rule: str) -> None:
    length = 10**7
    key = np.zeros((length, 1), np.float32)
    key[[3, length // 2, length - 1], 0] = 50, 40, 60
    query = np.ones((1, 1), np.float32)
    options: dict[str, Any] = {"always_keep": (1, 0), "scale": 1.0}
    out, residuals = topk_np.topk_attention_fwd(query, key, key, **options, **RULES[rule])
    kept = residuals.indices[0][residuals.indices[0] >= 0]
    wanted = [0, 3, length // 2, length - 1] if rule == "k" else [0, length - 1]
    assert kept.tolist() == wanted
    np.testing.assert_allclose(out, 60, rtol=1e-3)
    grads = topk_np.topk_attention_bwd(residuals, out)
    assert np.count_nonzero(grads.value) <= 4
