"""The Llama family against transformers itself, which `make peers` installs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import llamas
from tests.models.golden import assert_near
from topk_np.models import llama, load_model
from topk_np.models.decode import generate
from topk_np.models.family import HARMLESS, Fields, scatter
from topk_np.models.llama import Llama

pytest.importorskip("transformers", reason="transformers is not installed; `make peers` does it")
peer: Any = pytest.importorskip("tests.models.llamas_peer")
TOKENS, MASK = llamas.tokens(), llamas.mask()
TYPES = sorted(llama.DEFAULTS)
OTHERS: dict[str, Any] = {  # than the defaults; other fields are counted up, or negated
    "_name_or_path": "elsewhere",
    "architectures": ["Other"],
    "attention_dropout": 0.5,
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "initializer_range": 0.5,
    "label2id": {"a": 0, "b": 1, "c": 2},
    "pad_token_id": 7,
    "pretraining_tp": 2,
    "problem_type": "regression",
    "transformers_version": "4.0.0",
}


def saved(model: Any, folder: Path) -> Path:
    """A checkpoint as transformers saves it."""
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", llamas.CASES)
def test_logits_loss_and_all_gradients_agree(case: str, tmp_path: Path) -> None:
    theirs = peer.build(peer.config_of(llamas.CASES[case]))
    ours: Llama = load_model(saved(theirs, tmp_path))
    assert_near(llama.logits(ours, llama.forward(ours, TOKENS)), peer.logits(theirs, TOKENS))
    padded = llama.logits(ours, llama.forward(ours, TOKENS, mask=MASK))
    assert_near(padded[MASK], peer.logits(theirs, TOKENS, MASK)[MASK])
    loss, grads = peer.gradients(theirs, TOKENS)
    own, residuals = llama.loss_fwd(ours, TOKENS)
    np.testing.assert_allclose(float(own), loss, rtol=1e-5)
    fields = Fields(json.loads((tmp_path / "config.json").read_text()))
    names = llama.layout(fields, peer.shapes(theirs)).names
    tensors = scatter(llama.loss_bwd(residuals), names)
    assert tensors.keys() == grads.keys()
    for name, wanted in grads.items():
        scale = np.max(np.abs(wanted))
        assert np.max(np.abs(tensors[name] - wanted)) <= 1e-4 * scale + 1e-7, name


@pytest.mark.parametrize("case", llamas.CASES)
def test_left_padded_prompts_are_continued_alike(case: str, tmp_path: Path) -> None:
    theirs = peer.build(peer.config_of(llamas.CASES[case]))
    ours = load_model(saved(theirs, tmp_path))
    prompt, mask = TOKENS[:, 4:14], MASK[:, 4:14]
    ours = replace(ours, config=replace(ours.config, context=64))
    got = [step.tolist() for step in generate(ours, prompt, mask=mask, count=12)]
    assert np.array_equal(np.transpose(got), peer.generated(theirs, prompt, mask, 12))


@pytest.mark.parametrize("case", llamas.CASES)
def test_the_committed_files_are_what_transformers_computes(case: str) -> None:
    found, now = llamas.golden(case), peer.results(case)
    assert found["shapes"] == now["shapes"]
    assert found["generated"] == now["generated"]
    np.testing.assert_allclose(found["logits"], now["logits"], atol=1e-5 * now["scale"])
    known = {**llama.HARMLESS, **HARMLESS}
    for name in now["config"].keys() - found["config"].keys():
        assert name in known, f"transformers has a new field {name}"


@pytest.mark.parametrize("kind", TYPES)
def test_harmless_fields_change_nothing_in_transformers(kind: str) -> None:
    config = peer.config_of({"model_type": kind})
    wanted = peer.logits(peer.build(config), TOKENS)
    listed = {**HARMLESS, **llama.HARMLESS}
    names = [name for name in json.loads(config.to_json_string(use_diff=False)) if name in listed]
    assert len(names) > 15
    for name in names:
        if name in ("model_type", "is_encoder_decoder", "dtype", "return_dict"):
            continue  # transformers itself makes another model of these, or fails
        value = getattr(config, name, None)
        if name in OTHERS:
            other = OTHERS[name]
        else:
            other = not value if isinstance(value, bool) or value is None else value + 1
        changed = peer.config_of({"model_type": kind}, **{name: other})
        model = peer.build(changed).float()
        assert np.array_equal(peer.logits(model, TOKENS), wanted), name
