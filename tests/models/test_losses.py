"""The loss of each family and its gradients, against the reference and against slopes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends import Backend
from tests.models.golden import DATA, assert_gradients, assert_near, assert_slopes, expected
from topk_np.models import Model, bert, llama, load_model, t5, token_loss
from topk_np.models.model import LayerK
from topk_np.training import tree_map, unflatten

Case = tuple[Callable[..., Any], Callable[..., Any], list[str], dict[str, str]]
CASES: dict[str, Case] = {
    "bert": (
        bert.loss_fwd,
        bert.loss_bwd,
        ["input_ids", "labels"],
        {"mask": "attention_mask", "types": "token_type_ids"},
    ),
    "llama": (llama.loss_fwd, llama.loss_bwd, ["input_ids"], {}),
    "t5_relu": (t5.loss_fwd, t5.loss_bwd, ["input_ids", "labels"], {"mask": "attention_mask"}),
    "t5_gated_gelu": (
        t5.loss_fwd,
        t5.loss_bwd,
        ["input_ids", "labels"],
        {"mask": "attention_mask"},
    ),
}


def inputs(name: str) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The arrays that the loss of a model is given."""
    found = expected(name)
    named = {option: found[tensor] for option, tensor in CASES[name][3].items()}
    if "mask" in named:
        named["mask"] = named["mask"] == 1
    return [found[tensor] for tensor in CASES[name][2]], named


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_the_reference(
    xp: Backend, name: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_loss, "MOST_LOGITS", 96 * 7)  # of several chunks
    fwd, bwd = CASES[name][:2]
    arrays, named = inputs(name)
    loaded: Model[Any] = load_model(DATA / name)
    model = replace(loaded, params=tree_map(xp.asarray, loaded.params))
    loss, residuals = fwd(model, *xp.arrays(*arrays), recompute=recompute, **xp.options(named))
    assert_near(np.asarray([float(loss)]), expected(name)["loss"])
    grads = tree_map(xp.to_numpy, bwd(residuals))
    assert_gradients(name, loaded, grads)


@pytest.mark.parametrize("name", CASES)
@given(
    attention_k=st.sampled_from([None, 3, {0: None, "rest": 5}]),
    ffn_k=st.sampled_from([None, 9]),
    seed=st.integers(0, 99),
)
def test_gradients_are_slopes_dense_and_with_topk(
    name: str, attention_k: LayerK, ffn_k: int | None, seed: int
) -> None:
    fwd, bwd = CASES[name][:2]
    arrays, named = inputs(name)
    arrays = [array[:1, -9:] for array in arrays]
    named = {option: array[:1, -9:] for option, array in named.items()}
    model: Model[Any] = load_model(
        DATA / name, attention_k=attention_k, ffn_k=ffn_k, dtype="float64"
    )
    _, residuals = fwd(model, *arrays, recompute=bool(seed % 2), **named)

    def loss(flat: dict[str, Any]) -> Any:
        return fwd(replace(model, params=unflatten(flat)), *arrays, **named)[0]

    assert_slopes(model, bwd(residuals), loss, seed)


def test_half_precision_is_kept_and_gives_gradients_of_its_own_dtype() -> None:
    model: Model[Any] = load_model(DATA / "llama", dtype="float16")
    arrays, _ = inputs("llama")
    loss, residuals = llama.loss_fwd(model, *arrays)
    assert abs(float(loss) - float(expected("llama")["loss"][0])) < 0.02
    grads = llama.loss_bwd(residuals)
    assert grads["embedding"].dtype == np.float16


def test_labels_that_do_not_count_have_no_gradient() -> None:
    model: Model[Any] = load_model(DATA / "bert")
    (tokens, labels), named = inputs("bert")
    options: dict[str, Any] = dict(named)
    loss, residuals = bert.loss_fwd(model, tokens, np.full_like(labels, -100), **options)
    assert float(loss) == 0
    assert not np.any(bert.loss_bwd(residuals)["embedding"]["tokens"])


def test_labels_have_the_shape_of_the_tokens() -> None:
    model: Model[Any] = load_model(DATA / "bert")
    (tokens, labels), _ = inputs("bert")
    with pytest.raises(ValueError, match=r"labels must have the shape of the tokens.*\(2, 40\)"):
        bert.loss_fwd(model, tokens, labels[:, 1:])
