"""The tiny models of each family, and what the reference implementation computes with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from topk_np.models import Model
from topk_np.models.family import Fields, scatter
from topk_np.models.load import FAMILIES
from topk_np.models.tensors import read_checkpoint
from topk_np.training import flatten, tree_map

DATA = Path(__file__).parents[1] / "data"


def expected(name: str) -> dict[str, np.ndarray]:
    """What the reference gives, by name."""
    found: dict[str, np.ndarray] = load_file(DATA / name / "expected.safetensors")
    return found


def assert_near(actual: np.ndarray, wanted: np.ndarray) -> None:
    """Assert agreement within 1e-4 of the largest value wanted."""
    assert actual.shape == wanted.shape
    assert np.max(np.abs(actual - wanted)) <= 1e-4 * np.max(np.abs(wanted))


def assert_gradients(name: str, model: Model[Any], grads: dict[str, Any]) -> None:
    """Assert that gradients have the structure of the weights, and agree with the reference."""
    shapes = tree_map(lambda array, grad: array.shape == grad.shape, model.params, grads)
    assert all(flatten(shapes).values())
    fields = json.loads((DATA / name / "config.json").read_text())
    family = FAMILIES[fields["model_type"]]
    layout = family.layout(Fields(fields), read_checkpoint(DATA / name))
    tensors, found = scatter(grads, layout.names), 0
    for tensor, wanted in expected(name).items():
        if tensor.startswith("grad:"):
            assert_near(tensors[tensor.removeprefix("grad:")], wanted)
            found += 1
    assert found >= 3


def assert_slopes(model: Model[Any], grads: dict[str, Any], loss: Any, seed: int) -> None:
    """Assert that the gradient of each weight, in float64, is the slope along a direction."""
    # A small step, since there is a kink wherever two scores, or for ReLU one and 0, are equal.
    rng, size = np.random.default_rng(seed), 1e-8
    flat = flatten(model.params)
    for path in rng.permutation(list(flat))[:4]:
        direction = rng.standard_normal(flat[path].shape)

        def shifted(step: float, path: str = path, v: np.ndarray = direction) -> float:
            moved = {name: a + step * v if name == path else a for name, a in flat.items()}
            return float(loss(moved))

        slope = (shifted(size) - shifted(-size)) / (2 * size)
        gradient = float(np.sum(flatten(grads)[path] * direction))
        assert abs(slope - gradient) <= 2e-6 + 1e-5 * abs(slope), path
