"""Every type of the Llama family against files of transformers, and its config key by key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backends import Backend
from tests.models import llamas
from tests.models.golden import assert_slopes
from topk_np import KVCache
from topk_np.models import llama, load_model
from topk_np.models.decode import generate
from topk_np.models.family import HARMLESS, Fields, scatter
from topk_np.models.llama import Llama
from topk_np.models.model import check_ks
from topk_np.models.tokenizers import pad
from topk_np.training import flatten, tree_map, unflatten

TOKENS, MASK = llamas.tokens(), llamas.mask()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llamas")


def assert_samples(got: np.ndarray, wanted: list[float], scale: float) -> None:
    """Assert that samples agree within 1e-4 of the largest number of the whole array."""
    # A key's bias has no gradient in a layer without positions, only rounding.
    np.testing.assert_allclose(llamas.sample(got), wanted, rtol=0, atol=1e-4 * scale + 1e-7)


def names_of(case: str, model: Llama) -> list[Any]:
    found = llamas.golden(case)
    fields = Fields(found["config"])
    return llama.layout(fields, found["shapes"]).names


@pytest.mark.parametrize("case", llamas.CASES)
def test_logits_loss_and_gradients_are_those_of_transformers(
    xp: Backend, case: str, folder: Path
) -> None:
    found, loaded = llamas.golden(case), llamas.load(case, folder)
    model = replace(loaded, params=tree_map(xp.asarray, loaded.params))
    tokens, mask = xp.arrays(TOKENS, MASK)
    plain = llama.logits(model, llama.forward(model, tokens))
    assert_samples(xp.to_numpy(plain), found["logits"], found["scale"])
    padded = xp.to_numpy(llama.logits(model, llama.forward(model, tokens, mask=mask)))
    assert_samples(padded[MASK], found["padded"], found["scale"])
    loss, residuals = llama.loss_fwd(model, tokens)
    np.testing.assert_allclose(float(loss), found["loss"], rtol=1e-5)
    grads = tree_map(xp.to_numpy, llama.loss_bwd(residuals))
    tensors = scatter(grads, names_of(case, loaded))
    assert tensors.keys() == found["grads"].keys()
    for name, wanted in found["grads"].items():
        assert_samples(tensors[name], wanted, found["grad_scales"][name])


@pytest.mark.parametrize("case", llamas.CASES)
def test_left_padded_prompts_are_continued_as_transformers_does(case: str, folder: Path) -> None:
    wanted, model = np.asarray(llamas.golden(case)["generated"]), llamas.load(case, folder)
    model = replace(model, config=replace(model.config, context=64))
    prompt, mask = TOKENS[:, :12], MASK[:, :12]
    got = np.stack(list(generate(model, prompt, mask=mask, count=6)), axis=-1)
    assert np.array_equal(got, wanted)
    if case != "llama_dynamic":  # whose rule depends on the longest sequence of the batch
        alone = list(generate(model, prompt[1, mask[1]], count=6))
        assert np.array_equal(np.stack(alone, axis=-1), wanted[1])


@pytest.mark.parametrize("case", ["llama_biases", "qwen3_layer_types", "smollm3_windows"])
@pytest.mark.parametrize("ks", [{"attention_k": 4}, {"ffn_k": 7}], ids=str)
def test_gradients_with_topk_windows_and_masks_are_slopes(
    case: str, ks: dict[str, Any], folder: Path
) -> None:
    model = llamas.load(case, folder, dtype="float64", **ks)
    tokens, mask = TOKENS[:, :10], MASK[:, :10]
    for seed in range(4):
        recompute = bool(seed % 2)
        _, residuals = llama.loss_fwd(model, tokens, mask=mask, recompute=recompute)

        def loss(flat: dict[str, Any]) -> Any:
            return llama.loss_fwd(replace(model, params=unflatten(flat)), tokens, mask=mask)[0]

        assert_slopes(model, llama.loss_bwd(residuals), loss, seed)


@pytest.mark.parametrize("case", ["mistral", "qwen2_windows", "qwen3", "smollm3_windows"])
@pytest.mark.parametrize("ks", [{}, {"attention_k": 3, "ffn_k": 9}], ids=str)
def test_positions_read_in_steps_have_the_rows_of_the_full_pass(
    case: str, ks: dict[str, Any], folder: Path
) -> None:
    model = llamas.load(case, folder, **ks)
    full = llama.forward(model, TOKENS, mask=MASK)
    caches = [KVCache() for _ in check_ks(model)]
    for start, stop in ((0, 9), (9, 10), (10, 17), (17, 18), (18, 24)):
        rows = llama.forward(model, TOKENS[:, start:stop], mask=MASK[:, :stop], caches=caches)
        own = MASK[:, start:stop]
        np.testing.assert_allclose(rows[own], full[:, start:stop][own], rtol=2e-4, atol=2e-5)


def test_a_window_hides_what_lies_before_it(folder: Path) -> None:
    model = llamas.load("mistral", folder)
    one = replace(model, params={**model.params, "layers": {"0": model.params["layers"]["0"]}})
    one = replace(one, config=replace(one.config, windows=(6,)))
    hidden = llama.forward(one, TOKENS[0])
    others = TOKENS[0].copy()
    others[:4] = 5
    changed = llama.forward(one, others)
    assert np.array_equal(hidden[9:], changed[9:])
    assert not np.allclose(hidden[8], changed[8], atol=1e-3)


def test_attention_of_ones_own_is_told_of_masks_and_windows(folder: Path) -> None:
    model, told = llamas.load("smollm3_windows", folder), []

    def attention(query: Any, key: Any, value: Any, **hidden: Any) -> Any:
        told.append(hidden.get("window"))
        return llama.causal_attention(query, key, value, k=None, **hidden)

    hidden = llama.forward(model, TOKENS, mask=MASK, attention=attention)
    assert told == [7, None, 7]
    assert np.array_equal(hidden, llama.forward(model, TOKENS, mask=MASK))
    told.clear()
    llama.forward(model, TOKENS, attention=attention)
    assert told == [7, None, 7]


def test_stretched_positions_make_room_for_longer_sequences(tmp_path: Path) -> None:
    for case, context in (
        ("llama", 64),
        ("llama_3_1", 64),
        ("llama_linear", 256),
        ("llama_dynamic", 30),
        ("qwen2_5", 64),
    ):
        assert llamas.load(case, tmp_path).config.context == context, case


def test_a_factor_of_yarn_may_follow_from_the_lengths(tmp_path: Path) -> None:
    found, model = llamas.golden("qwen2_5"), llamas.load("qwen2_5", tmp_path)
    rope = {**found["config"]["rope_parameters"], "factor": None}  # 64 over 16
    llamas.write(tmp_path, {**found["config"], "rope_parameters": rope}, found["shapes"])
    assert load_model(tmp_path).config == model.config


def test_positions_can_be_given(folder: Path) -> None:
    model = llamas.load("llama", folder)
    hidden = llama.forward(model, TOKENS)
    positions = np.broadcast_to(np.arange(llamas.LENGTH) + 3, TOKENS.shape)
    moved = llama.forward(model, TOKENS, positions=positions)
    np.testing.assert_allclose(moved, hidden, atol=1e-4)  # only differences count
    stretched = llama.forward(model, TOKENS, positions=2 * np.arange(llamas.LENGTH))
    assert not np.allclose(stretched, hidden, atol=1e-2)


def test_the_loss_of_a_padded_batch_is_the_mean_over_its_tokens(folder: Path) -> None:
    model = llamas.load("qwen3", folder)
    loss, residuals = llama.loss_fwd(model, TOKENS, mask=MASK)
    alone = [
        float(llama.loss_fwd(model, row[own])[0]) for row, own in zip(TOKENS, MASK, strict=True)
    ]
    counts = MASK.sum(axis=1) - 1
    np.testing.assert_allclose(float(loss), np.dot(alone, counts) / counts.sum(), rtol=1e-5)
    assert llama.loss_bwd(residuals).keys() == model.params.keys()


def filled(model: Llama) -> list[KVCache]:
    """Caches of four positions."""
    caches = [KVCache() for _ in check_ks(model)]
    llama.forward(model, TOKENS[:, :4], caches=caches)
    return caches


def test_texts_of_different_lengths_are_padded_on_either_side() -> None:
    rows = [np.array([5, 6, 7]), np.array([8])]
    assert pad(rows)[0].tolist() == [[5, 6, 7], [8, 0, 0]]
    left, mask = pad(rows, token=9, side="left")
    assert left.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]
    with pytest.raises(ValueError, match=r"side must be one of .*, got 'middle'"):
        pad(rows, side="middle")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: llama.forward(m, TOKENS, mask=MASK[:, 1:]), ValueError, "the shape of the tok"),
        (lambda m: llama.forward(m, TOKENS, mask=MASK * 1), TypeError, "mask must be boolean"),
        (
            lambda m: llama.forward(m, TOKENS, positions=np.arange(3)),
            ValueError,
            r"positions must be integers for each of 24 tokens, got shape \(3,\)",
        ),
        (
            lambda m: generate(m, TOKENS, mask=MASK[:, ::-1], count=1),
            ValueError,
            "mask must be True at the last token of each prompt: pad on the left",
        ),
        (
            lambda m: llama.forward(m, TOKENS[:, :1], mask=MASK[:, :1], caches=filled(m)),
            ValueError,
            "mask must have 5 positions, those of the caches and the tokens, got 1",
        ),
    ],
)
def test_masks_and_positions_are_checked(
    call: Any, error: type[Exception], message: str, folder: Path
) -> None:
    with pytest.raises(error, match=message):
        call(llamas.load("llama", folder))


CHANGES: dict[
    str, tuple[Any, ...]
] = {  # other values of fields, of which one at least is not the default
    "head_dim": (4, 10),
    "hidden_act": ("relu",),
    "layer_types": (["full_attention"] * 4, ["sliding_attention"] * 4),
    "rope_parameters": ({"rope_type": "linear", "factor": 3.0},),
    "sliding_window": (3, None),
    "no_rope_layers": ([1, 1, 1, 1], [0, 0, 0, 0]),
    "max_window_layers": (0, 2),
    "model_type": ("llama", "qwen3", "smollm3"),
    "rms_norm_eps": (0.5,),
}


@pytest.mark.parametrize("case", llamas.CASES)
def test_no_field_of_a_config_is_ignored_in_silence(case: str, tmp_path: Path) -> None:
    """Another value is refused, or makes another model, or the field is listed as harmless."""
    found, before = llamas.golden(case), llamas.load(case, tmp_path)
    unchanged = before.config, flatten(before.params).keys()
    for name, value in found["config"].items():
        if name in HARMLESS or name in llama.HARMLESS:
            continue
        others = CHANGES.get(name)
        if others is None:
            assert isinstance(value, (bool, int)), name
            others = (not value,) if isinstance(value, bool) else (value + 1, value + 2)
        effects = 0
        for other in others:
            llamas.write(tmp_path, {**found["config"], name: other}, found["shapes"])
            try:
                after = load_model(tmp_path)
            except (ValueError, TypeError):
                effects += 1
                continue
            effects += (after.config, flatten(after.params).keys()) != unchanged
        assert effects or _without_effect(found["config"], name), name


@pytest.mark.parametrize("case", llamas.CASES)
def test_fields_that_a_config_lacks_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    found, whole = llamas.golden(case), llamas.load(case, tmp_path)
    few = {
        name: value
        for name, value in {**llamas.SIZES, **llamas.CASES[case]}.items()
        if value is not None or name == "sliding_window"
    }
    model = load_model(llamas.write(tmp_path, few, found["shapes"]))
    assert model.config == whole.config
    assert flatten(model.params).keys() == flatten(whole.params).keys()


def _without_effect(config: dict[str, Any], name: str) -> bool:
    """Tell if a field changes nothing, since `layer_types` or `no_rope_layers` is given."""
    narrow = "sliding_attention" in config.get("layer_types", ())
    if name in ("sliding_window", "use_sliding_window"):
        return "layer_types" in config and not narrow
    return name in ("max_window_layers", "no_rope_layer_interval")


PUBLISHED: dict[str, dict[str, Any]] = {  # fields of well-known models beyond those of their class
    "llama": {"is_llama_config": True, "rope_interleaved": False, "rope_scaling": None,
              "torch_dtype": "bfloat16", "transformers.js_config": {"dtype": "q4"},
              "unsloth_fixed": True, "max_length": 20, "pruned_heads": {}},
    "qwen2_5": {"use_mrope": False, "_attn_implementation_autoset": True},
    "smollm3": {"max_window_layers": 28, "pretraining_tp": 2, "temperature": 0.6},
}  # fmt: skip


@pytest.mark.parametrize("case", PUBLISHED)
def test_fields_of_published_configs_are_known(case: str, tmp_path: Path) -> None:
    found, model = llamas.golden(case), llamas.load(case, tmp_path)
    llamas.write(tmp_path, {**found["config"], **PUBLISHED[case]}, found["shapes"])
    assert load_model(tmp_path).config == model.config


def test_a_field_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    found = llamas.golden("qwen3")
    config = {**found["config"], "logit_scale": 0.5, "nothing": None}
    with pytest.raises(ValueError, match=r"does not know: logit_scale \(0\.5\); remove them if"):
        load_model(llamas.write(tmp_path, config, found["shapes"]))


def test_harmless_fields_have_a_reason() -> None:
    assert all(len(reason) > 20 for reason in {**HARMLESS, **llama.HARMLESS}.values())
