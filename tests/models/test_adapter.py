"""Adapters: what is trained of a model, its gradients, and the way into a file and back."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import Backend
from tests.models.golden import DATA, assert_near
from tests.models.test_losses import CASES, inputs
from topk_np.models import Adapter, AdapterError, Model, llama, load_model
from topk_np.training import adamw, adamw_init, flatten, save_params, tree_map, unflatten

UPDATED = ["*layers.0*.query", "*layers.1.ffn.*s"]


def short(name: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Inputs of a few positions."""
    arrays, named = inputs(name)
    return [array[:1, -9:] for array in arrays], {n: array[:1, -9:] for n, array in named.items()}


def moved(adapter: Adapter, seed: int = 3) -> Adapter:
    """The adapter after some training, as it were."""
    rng = np.random.default_rng(seed)
    noise = tree_map(
        lambda a: a + 0.1 * rng.standard_normal(a.shape).astype(a.dtype), adapter.params
    )
    return replace(adapter, params=noise)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_chosen_weights_are_those_of_all_weights(xp: Backend, name: str) -> None:
    fwd, bwd = CASES[name][:2]
    arrays, named = short(name)
    loaded: Model[Any] = load_model(DATA / name, ffn_k=9)
    model = replace(loaded, params=tree_map(xp.asarray, loaded.params))
    _, residuals = fwd(model, *xp.arrays(*arrays), **xp.options(named))
    whole = flatten(bwd(residuals))
    for only in (["*"], ["*layers.1.*", "embedding*"], ["*norm*"], ["*layers.0*.key"]):
        adapter = Adapter.of_weights(model.params, only=only)
        chosen = flatten(bwd(residuals, keep=adapter.keep()))
        assert chosen.keys() == flatten(adapter.params).keys()
        for path, grad in chosen.items():
            assert np.array_equal(xp.to_numpy(grad), xp.to_numpy(whole[path])), path
    assert Adapter.of_weights(model.params).params.keys() == model.params.keys()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrong", ["layers.9.ffn.keys", "norm.more", "nothing", "encoder"])
def test_a_gradient_of_no_weight_is_not_kept(name: str, wrong: str) -> None:
    fwd, bwd = CASES[name][:2]
    arrays, named = short(name)
    model: Model[Any] = load_model(DATA / name)
    _, residuals = fwd(model, *arrays, **named)
    right = next(iter(flatten(model.params)))
    with pytest.raises(ValueError, match=f"keep must name weights of the model, got '{wrong}'"):
        bwd(residuals, keep={right: np.copy, wrong: np.copy})


@pytest.mark.parametrize("name", CASES)
@given(attention_k=st.sampled_from([None, 3]), ffn_k=st.sampled_from([None, 9]))
def test_gradients_of_low_rank_updates_are_slopes(
    name: str, attention_k: int | None, ffn_k: int | None
) -> None:
    fwd, bwd = CASES[name][:2]
    arrays, named = short(name)
    model: Model[Any] = load_model(
        DATA / name, attention_k=attention_k, ffn_k=ffn_k, dtype="float64"
    )
    rng = np.random.default_rng(0)
    adapter = moved(Adapter.low_rank(model.params, rng, rank=2, alpha=3.0, only=UPDATED))
    _, residuals = fwd(adapter.apply(model), *arrays, **named)
    grads = flatten(bwd(residuals, keep=adapter.keep()))
    flat = flatten(adapter.params)
    assert grads.keys() == flat.keys()
    direction = {path: rng.standard_normal(array.shape) for path, array in flat.items()}

    def loss(step: float) -> float:
        params = {path: array + step * direction[path] for path, array in flat.items()}
        there = replace(adapter, params=unflatten(params)).apply(model)
        return float(fwd(there, *arrays, **named)[0])

    slope = (loss(1e-7) - loss(-1e-7)) / 2e-7
    assert abs(slope - sum(np.sum(grads[p] * direction[p]) for p in flat)) <= 1e-6 + 1e-5 * abs(
        slope
    )


@pytest.mark.parametrize("name", CASES)
def test_low_rank_updates_change_nothing_at_first(xp: Backend, name: str) -> None:
    fwd = CASES[name][0]
    arrays, named = short(name)
    loaded: Model[Any] = load_model(DATA / name)
    model = replace(loaded, params=tree_map(xp.asarray, loaded.params))
    adapter = Adapter.low_rank(model.params, np.random.default_rng(0), rank=2)
    merged = adapter.apply(model)
    for path, array in flatten(merged.params).items():
        assert np.array_equal(xp.to_numpy(array), flatten(loaded.params)[path]), path
    losses = [
        float(fwd(one, *xp.arrays(*arrays), **xp.options(named))[0]) for one in (model, merged)
    ]
    assert losses[0] == losses[1]


def test_merged_updates_are_those_of_the_hidden_states() -> None:
    model: Model[Any] = load_model(DATA / "llama", dtype="float64")
    only = ["layers.*.attention.query"]
    adapter = moved(Adapter.low_rank(model.params, np.random.default_rng(0), rank=2, only=only))
    adapter = replace(adapter, scale=0.5)
    x = np.random.default_rng(1).standard_normal((7, model.params["norm"].shape[0]))
    for layer in model.params["layers"]:
        weight, factors = (
            tree["layers"][layer]["attention"]["query"] for tree in (model.params, adapter.params)
        )
        merged = adapter.apply(model).params["layers"][layer]["attention"]["query"]
        beside = x @ weight.T + 0.5 * (x @ factors["a"].T) @ factors["b"].T
        np.testing.assert_allclose(x @ merged.T, beside, rtol=1e-10, atol=1e-12)


def test_updates_are_scaled_by_alpha_over_the_rank_or_not_at_all() -> None:
    model: Model[Any] = load_model(DATA / "llama")
    made = (
        Adapter.low_rank(model.params, np.random.default_rng(0), rank=4, alpha=alpha)
        for alpha in (None, 8.0)
    )
    assert [adapter.scale for adapter in made] == [1.0, 2.0]


def test_training_changes_the_factors_and_leaves_the_weights_alone() -> None:
    model: Model[Any] = load_model(DATA / "llama")
    before = {path: array.copy() for path, array in flatten(model.params).items()}
    (tokens,), _ = inputs("llama")
    adapter = Adapter.low_rank(model.params, np.random.default_rng(0), rank=2)
    first, state, losses = adapter, adamw_init(adapter.params), []
    for _ in range(8):
        loss, residuals = llama.loss_fwd(adapter.apply(model), tokens)
        grads = llama.loss_bwd(residuals, keep=adapter.keep())
        params, state = adamw(adapter.params, grads, state, learning_rate=0.01)
        adapter = replace(adapter, params=params)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.05
    for path, array in flatten(model.params).items():
        assert np.array_equal(array, before[path]), path
    for path, array in flatten(adapter.params).items():
        assert not np.array_equal(array, flatten(first.params)[path]), path
    tuned = flatten(adapter.apply(model).params)
    changed = {path for path in tuned if not np.array_equal(tuned[path], before[path])}
    assert changed == {path for path in before if ".attention." in path or ".ffn." in path}


def test_gradients_of_what_is_not_trained_are_not_held() -> None:
    model: Model[Any] = load_model(DATA / "llama")
    layer = model.params["layers"]["0"]
    deep = replace(
        model,
        params={**model.params, "layers": {str(i): layer for i in range(16)}},
    )
    tokens = inputs("llama")[0][0][:1, :4]
    adapter = Adapter.of_weights(deep.params, only=["layers.15.attention_norm"])

    def held(keep: Any) -> int:
        _, residuals = llama.loss_fwd(deep, tokens, recompute=True)
        tracemalloc.start()
        try:
            grads = llama.loss_bwd(residuals, keep=keep)
            return tracemalloc.get_traced_memory()[1] if grads else 0
        finally:
            tracemalloc.stop()

    held(None)  # what is imported on first use is not counted
    everything = sum(array.nbytes for array in flatten(deep.params).values())
    assert held(None) > everything
    assert held(adapter.keep()) < everything / 3


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_saved_adapter_makes_the_same_model(tmp_path: Path, low_rank: bool) -> None:
    model: Model[Any] = load_model(DATA / "bert")
    if low_rank:
        adapter = Adapter.low_rank(model.params, np.random.default_rng(0), rank=2, alpha=5.0)
    else:
        adapter = Adapter.of_weights(model.params, only=["layers.1.*"])
    adapter = moved(adapter)
    adapter.save(tmp_path / "adapter.safetensors", note="mine")
    again = Adapter.load(tmp_path / "adapter.safetensors")
    assert again.scale == adapter.scale
    there = flatten(again.apply(model).params)
    for path, array in flatten(adapter.apply(model).params).items():
        assert array.tobytes() == there[path].tobytes(), path


def test_a_loaded_adapter_fits_a_model_of_another_library(xp: Backend, tmp_path: Path) -> None:
    loaded: Model[Any] = load_model(DATA / "llama")
    rng = np.random.default_rng(0)
    for i, adapter in enumerate(
        (
            Adapter.low_rank(loaded.params, rng, rank=2),
            Adapter.of_weights(loaded.params, only=["norm"]),
        )
    ):
        path = tmp_path / f"{i}.safetensors"
        moved(adapter).save(path)
        model = replace(loaded, params=tree_map(xp.asarray, loaded.params))
        tokens = inputs("llama")[0][0]
        there = llama.loss_fwd(Adapter.load(path).apply(model), xp.asarray(tokens))[0]
        here = llama.loss_fwd(moved(adapter, 3).apply(loaded), tokens)[0]
        assert_near(np.asarray([float(there)]), np.asarray([float(here)]))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    model: Model[Any] = load_model(DATA / "llama")
    other: Model[Any] = load_model(DATA / "bert")
    rng = np.random.default_rng(0)
    with pytest.raises(AdapterError, match="only must fit what can be trained, got 'heads'"):
        Adapter.of_weights(model.params, only=["*", "heads"])
    with pytest.raises(AdapterError, match="only must fit what can be trained, got 'norm'"):
        Adapter.low_rank(model.params, rng, rank=2, only=["norm"])
    pooler = Adapter.of_weights(other.params, only=["embedding.types"])
    with pytest.raises(AdapterError, match=r"has embedding\.types, which the model has not"):
        pooler.apply(model)
    with pytest.raises(AdapterError, match=r"adapter's norm must have shape \(32,\) and dtype"):
        Adapter({"norm": np.ones(31, np.float32)}).apply(model)
    with pytest.raises(AdapterError, match=r"adapter's embedding: a and b must have shapes"):
        Adapter({"embedding": {"a": np.ones((1, 2)), "b": np.ones((2, 1))}}, 1.0).apply(model)


def test_a_file_that_holds_no_adapter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_params(path, {"norm": np.ones(2)})
    with pytest.raises(AdapterError, match=r"other\.safetensors holds no adapter"):
        Adapter.load(path)
    pair, alone = {"w": {"a": np.ones(2), "b": np.ones(2)}}, {"w": {"a": np.ones(2)}}
    for params, scale in ((pair, {}), (pair, "often"), (alone, "1.0"), (pair, "true")):
        about = {} if scale == {} else {"scale": str(scale)}
        save_params(path, params, metadata={"kind": "adapter", **about})
        with pytest.raises(AdapterError, match=r"other\.safetensors holds no adapter"):
            Adapter.load(path)
    path.write_bytes(b"no")
    with pytest.raises(AdapterError, match=r"other\.safetensors: cut off, damaged"):
        Adapter.load(path)
