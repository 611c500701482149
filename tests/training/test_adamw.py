"""AdamW and clipping: number by number, scale by scale, on every library and dtype."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.backends import NUMPY, Backend
from tests.oracles import assert_close
from topk_np.training import adamw, adamw_init, clip_by_global_norm, flatten, tree_map

numbers = st.floats(-3, 3, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-3)
arrays = hnp.arrays(np.float64, st.sampled_from([(), (3,), (2, 2), (0,)]), elements=numbers)
trees = st.dictionaries(st.sampled_from("abc"), arrays, min_size=1)
settings = st.fixed_dictionaries(
    {
        "learning_rate": st.floats(1e-3, 1),
        "beta1": st.floats(0, 0.99),
        "beta2": st.floats(0, 0.999),
        "epsilon": st.sampled_from([1e-8, 1e-3]),
        "weight_decay": st.floats(0, 0.5),
    }
)


def by_scalars(
    x: float, grads: list[float], decays: bool, *, learning_rate: float, beta1: float,
    beta2: float, epsilon: float, weight_decay: float,
) -> float:  # fmt: skip
    """Loshchilov and Hutter 2019, algorithm 2, for one number."""
    mean = square = 0.0
    for step, grad in enumerate(grads, 1):
        mean = beta1 * mean + (1 - beta1) * grad
        square = beta2 * square + (1 - beta2) * grad**2
        hat, root = mean / (1 - beta1**step), math.sqrt(square / (1 - beta2**step))
        x -= learning_rate * (hat / (root + epsilon) + (weight_decay * x if decays else 0.0))
    return x


@given(params=trees, options=settings, data=st.data())
def test_every_number_follows_the_algorithm(
    xp: Backend, params: dict[str, np.ndarray], options: dict[str, float], data: st.DataObject
) -> None:
    decays = {name: data.draw(st.booleans(), label=f"{name} decays") for name in params}
    rng = np.random.default_rng(0)
    steps = [tree_map(lambda a: rng.standard_normal(a.shape), params) for _ in range(3)]
    new, state = tree_map(xp.asarray, params), adamw_init(tree_map(xp.asarray, params))
    for grads in steps:
        new, state = adamw(new, tree_map(xp.asarray, grads), state, decays=decays, **options)
    assert state.step == 3
    for name, param in params.items():
        wanted = np.empty_like(param)
        for place in np.ndindex(param.shape):
            own = [float(grads[name][place]) for grads in steps]
            wanted[place] = by_scalars(float(param[place]), own, decays[name], **options)
        assert_close(xp.to_numpy(new[name]), wanted, size=1e3)


def test_everything_decays_unless_told_otherwise() -> None:
    params = {"weight": np.ones(2)}
    grads = {"weight": np.zeros(2)}
    new, _ = adamw(params, grads, adamw_init(params), learning_rate=0.5, weight_decay=0.5)
    assert new["weight"].tolist() == [0.75, 0.75]
    kept, _ = adamw(params, grads, adamw_init(params), learning_rate=0.5, decays={"weight": False})
    assert kept["weight"].tolist() == [1, 1]
    assert params["weight"].tolist() == [1, 1]


def test_half_precision_is_computed_in_single_and_rounded_once() -> None:
    rng = np.random.default_rng(0)
    params, grads = ({"w": rng.standard_normal(50).astype("float16")} for _ in range(2))
    state = adamw_init(params)
    assert state.mean["w"].dtype == state.square["w"].dtype == np.float32
    new, _ = adamw(params, grads, state, learning_rate=1e-2)
    wide = [tree_map(lambda a: a.astype("float64"), tree) for tree in (params, grads)]
    exact, _ = adamw(wide[0], wide[1], adamw_init(wide[0]), learning_rate=1e-2)
    assert new["w"].dtype == np.float16
    assert np.max(np.abs(new["w"] / exact["w"] - 1)) <= 2**-11 * 1.001


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be at least 0, got -1.0"),
        ({"beta1": 1.0}, ValueError, "beta1 must be at least 0 and below 1, got 1.0"),
        ({"beta2": "much"}, TypeError, "beta2 must be a real number, got 'much'"),
        ({"weight_decay": math.inf}, ValueError, "weight_decay must be finite"),
        ({"decays": {"v": True}}, ValueError, "trees differ at the root: only one has 'v', 'w'"),
    ],
)
def test_settings_out_of_range_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    params = {"w": np.ones(2)}
    with pytest.raises(error, match=message):
        adamw(params, params, adamw_init(params), **{"learning_rate": 0.1, **change})


def test_other_states_and_gradients_are_refused() -> None:
    params = {"w": np.ones(2)}
    other: Any = (0, params, params)
    with pytest.raises(TypeError, match="state must be an AdamWState, got tuple"):
        adamw(params, params, other, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"shapes of their parameters, \(2,\), got \(1,\)"):
        adamw(params, {"w": np.ones(1)}, adamw_init(params), learning_rate=0.1)


@given(grads=trees, limit=st.floats(0.01, 10))
def test_clipped_gradients_have_the_direction_and_no_more_than_the_limit(
    xp: Backend, grads: dict[str, np.ndarray], limit: float
) -> None:
    whole = np.concatenate([np.ravel(array) for array in grads.values()])
    if whole.size == 0:
        with pytest.raises(ValueError, match="grads must have at least one number"):
            clip_by_global_norm(grads, limit)
        return
    clipped, norm = clip_by_global_norm(tree_map(xp.asarray, grads), limit)
    wanted = math.sqrt(math.fsum(whole**2))
    assert_close(xp.to_numpy(norm), np.asarray(wanted), size=10.0)
    factor = min(1.0, limit / wanted) if wanted else 1.0
    for name, array in grads.items():
        assert_close(xp.to_numpy(clipped[name]), np.asarray(array * factor), size=10.0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_squares_of_gradients_do_not_overflow(dtype: str) -> None:
    large = {"w": np.full(4, np.finfo(dtype).max / 8, dtype)}
    clipped, norm = clip_by_global_norm(large, 1.0)
    assert float(norm) == pytest.approx(float(np.finfo(dtype).max) / 4, rel=1e-3)
    assert clipped["w"].dtype == dtype
    assert clipped["w"].tolist() == pytest.approx([0.5] * 4, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_gradients_that_are_not_finite_are_not_made_to_look_so(bad: float) -> None:
    clipped, norm = clip_by_global_norm({"w": np.array([1.0, bad]), "v": np.ones(1)}, 1.0)
    assert math.isnan(float(norm))
    assert np.isnan(flatten(clipped)["v"]).all()


def test_the_limit_is_checked_and_inputs_are_not_written_to() -> None:
    grads = {"w": NUMPY.asarray(np.array([3.0, 4.0]))}
    assert clip_by_global_norm(grads, 1.0)[0]["w"].tolist() == pytest.approx([0.6, 0.8])
    with pytest.raises(ValueError, match="limit must be above 0, got 0"):
        clip_by_global_norm(grads, 0)
