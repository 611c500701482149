"""The training step is the same model, here and in PyTorch, and it trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from topk_np.bench.cases import ATTENTION, BOTH, FFN, make_inputs
from topk_np.bench.peers import PEERS, STEP_DENSE, STEP_TOPK, STEP_TORCH
from topk_np.bench.step import make_batch, make_model, step_case
from topk_np.training import flatten
from topk_np.training.classifier import classifier

SMALL = replace(step_case(), queries=12, keys=12, width=8)


def losses(name: str, steps: int, case: Any = SMALL) -> list[float]:
    run = PEERS[name].build(case, make_inputs(case)).of(BOTH)
    return [run()[0] for _ in range(steps)]


def test_steps_lower_the_loss() -> None:
    found = losses(STEP_DENSE, 8)
    assert found[-1] < found[0]


def test_a_step_keeps_k_keys_and_with_k_of_all_it_is_the_dense_one() -> None:
    dense = losses(STEP_DENSE, 3)
    assert losses(STEP_TOPK, 3, replace(SMALL, k=12)) == pytest.approx(dense, rel=1e-5)
    assert losses(STEP_TOPK, 3, replace(SMALL, k=2)) != pytest.approx(dense, rel=1e-5)


@pytest.mark.parametrize("name", [STEP_DENSE, STEP_TOPK, STEP_TORCH])
def test_steps_take_no_part_in_comparisons_of_attention(name: str) -> None:
    assert PEERS[name].does(SMALL, BOTH)
    assert not any(PEERS[name].does(replace(SMALL, kind=kind), BOTH) for kind in (ATTENTION, FFN))


def test_pytorch_has_the_same_model() -> None:
    torch = pytest.importorskip("torch")
    from topk_np.bench.torch_peers import Classifier

    params = make_model(SMALL, "dense").init(np.random.default_rng(1))
    flat = {name: torch.from_numpy(array) for name, array in flatten(params).items()}
    names = {"tokens.weight": "tokens", "positions.weight": "positions"}
    for part, ours in (("head", "head"), ("blocks.norm", "norm")):
        names |= {f"{part}.{name}": f"{ours}.{name}" for name in ("weight", "bias")}
    state = {name: flat[ours] for name, ours in names.items()}
    for i in range(2):
        theirs, ours = f"blocks.layers.{i}", f"blocks.{i}"
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            rows = [flat[f"{ours}.attention.{name}{suffix}"] for name in ("query", "key", "value")]
            state[f"{theirs}.self_attn.in_proj_{kind}"] = torch.cat(rows)
            state[f"{theirs}.self_attn.out_proj.{kind}"] = flat[f"{ours}.attention.out{suffix}"]
            state[f"{theirs}.norm1.{kind}"] = flat[f"{ours}.attention_norm.{kind}"]
            state[f"{theirs}.norm2.{kind}"] = flat[f"{ours}.ffn_norm.{kind}"]
        state[f"{theirs}.linear1.weight"] = flat[f"{ours}.ffn.keys"]
        state[f"{theirs}.linear1.bias"] = flat[f"{ours}.ffn.key_bias"]
        state[f"{theirs}.linear2.weight"] = flat[f"{ours}.ffn.values"].T  # ours has a row a unit
        state[f"{theirs}.linear2.bias"] = flat[f"{ours}.ffn.value_bias"]
    model = Classifier(SMALL)
    model.load_state_dict(state)
    tokens = make_batch(SMALL).tokens
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)).numpy()
    expected = classifier(tokens, params, make_model(SMALL, "dense"))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
