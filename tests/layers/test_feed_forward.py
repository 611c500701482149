"""The feed-forward layer by names: what `topk_ffn` and `dense_ffn` give, and its slopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import Backend
from tests.layers.trios import assert_layer
from tests.oracles import assert_close
from tests.strategies import few_examples, seeds
from topk_np import dense_ffn, topk_ffn
from topk_np.layers import feed_forward, feed_forward_bwd, feed_forward_fwd

OTHERS = ("key_bias", "value_bias", "gate")


@few_examples()
@given(
    given_too=st.sets(st.sampled_from(OTHERS)),
    k=st.none() | st.integers(1, 6),
    select=st.sampled_from(["score", "activation"]),
    activation=st.sampled_from(["relu", "gelu", "silu"]),
    seed=seeds,
)
def test_it_is_the_layer_of_its_arrays(
    xp: Backend, given_too: set[str], k: int | None, select: str, activation: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shapes: dict[str, Any] = {
        "keys": (5, 4),
        "values": (5, 3),
        "key_bias": 5,
        "value_bias": 3,
        "gate": (5, 4),
    }
    names = [name for name in shapes if name not in OTHERS or name in given_too]
    params = {name: rng.standard_normal(shapes[name]) for name in names}
    x = rng.standard_normal((2, 3, 4))
    others = {name: xp.asarray(params[name]) for name in given_too}
    rule: dict[str, Any] = {} if k is None else {"k": k, "select": select}
    function: Any = dense_ffn if k is None else topk_ffn
    wanted = function(
        *xp.arrays(x, params["keys"], params["values"]), activation=activation, **rule, **others
    )
    options: dict[str, Any] = {"k": k, "select": select, "activation": activation}
    on_xp = {name: xp.asarray(array) for name, array in params.items()}
    found = feed_forward(xp.asarray(x), on_xp, **options)
    assert_close(xp.to_numpy(found), xp.to_numpy(wanted), size=0)

    def fwd(rows: Any, *arrays: Any) -> Any:
        return feed_forward_fwd(rows, dict(zip(names, arrays, strict=True)), **options)

    def bwd(residuals: Any, dout: Any) -> Any:
        grads = feed_forward_bwd(residuals, dout)
        assert list(grads.params) == [name for name in shapes if name in names]
        return (grads.x, *(grads.params[name] for name in names))

    assert_layer(xp, fwd, bwd, x, *params.values())


@pytest.mark.parametrize("names", [("keys",), ("keys", "values", "weight")])
def test_names_that_are_missing_or_unknown_are_refused(names: tuple[str, ...]) -> None:
    params = dict.fromkeys(names, np.eye(2))
    with pytest.raises(ValueError, match=r'params must have "keys" and "values".* got \'keys\''):
        feed_forward(np.eye(2), params)


def test_residuals_of_another_function_are_refused() -> None:
    other: Any = (np.eye(2),)
    with pytest.raises(TypeError, match="residuals must come from feed_forward_fwd, got tuple"):
        feed_forward_bwd(other, np.eye(2))


def test_a_rule_that_does_not_exist_is_refused_also_where_all_units_are_used() -> None:
    params = {"keys": np.eye(2), "values": np.eye(2)}
    for k in (None, 1):
        with pytest.raises(ValueError, match="select must be one of 'activation', 'score', got"):
            feed_forward(np.eye(2), params, k=k, select="best")
