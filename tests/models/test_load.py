"""Loading folders and files through the one face."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models.golden import DATA, assert_near, expected
from tests.models.tiny import CONFIG, EXPECTED, TENSORS
from topk_np.models import llama, load_model
from topk_np.models.family import HARMLESS
from topk_np.models.load import FAMILIES
from topk_np.models.tensors import INDEX, read_checkpoint
from topk_np.models.tokenizers import pad
from topk_np.training import flatten

LAST = "model.layers.1.mlp.up_proj.weight"
DAMAGED = r"model\.safetensors: cut off, damaged or not a safetensors file \(.+\)"


def write(
    folder: Path, tensors: dict[str, np.ndarray] = TENSORS, config: dict[str, Any] = CONFIG
) -> Path:
    """A folder with a checkpoint."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def assert_right(path: Path, **options: Any) -> None:
    model = load_model(path, **options)
    hidden = llama.forward(model, EXPECTED["input_ids"])
    assert_near(llama.logits(model, hidden), EXPECTED["logits"])


def test_a_checkpoint_in_several_files_is_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    names = sorted(TENSORS)
    files = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: TENSORS[n] for n in names if files[n] == file}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": files}))
    assert_right(tmp_path)
    other = f"model-{(names.index(LAST) + 1) % 3}.safetensors"
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {**files, LAST: other}}))
    with pytest.raises(ValueError, match=rf"{other} has no tensor {LAST}, against the index"):
        load_model(tmp_path)


def test_weights_are_read_only_views_of_the_file_where_nothing_has_to_change(
    tmp_path: Path,
) -> None:
    params = load_model(write(tmp_path)).params
    query = params["layers"]["0"]["attention"]["query"]
    assert not query.flags.writeable
    base = query
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    assert params["layers"]["0"]["ffn"]["values"].flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept_when_asked(tmp_path: Path, dtype: str) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    halves = {name: tensor.astype(kind) for name, tensor in TENSORS.items()}
    folder = write(tmp_path, halves)
    kept, cast = load_model(folder, dtype=None), load_model(folder)
    assert kept.params["norm"].dtype == kind
    assert cast.params["norm"].dtype == np.float32
    a, b = (llama.forward(m, EXPECTED["input_ids"]).astype(np.float32) for m in (kept, cast))
    assert 0 < np.max(np.abs(a - b)) < 0.1 * np.max(np.abs(b))


def test_a_file_beside_its_config_is_a_checkpoint_too(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert_right(folder / "model.safetensors", attention_k=[None, 41], ffn_k=64)


def test_an_untied_head_and_a_bare_model_are_read(tmp_path: Path) -> None:
    head = TENSORS["model.embed_tokens.weight"][::-1].copy()
    bare = {name.removeprefix("model."): tensor for name, tensor in TENSORS.items()}
    config = {**CONFIG, "tie_word_embeddings": False}
    model = load_model(write(tmp_path, {**bare, "lm_head.weight": head}, config))
    assert np.array_equal(model.params["head"], head)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({LAST: None}, f"the checkpoint has no tensor {LAST}"),
        (
            {LAST: np.zeros((63, 32), np.float32)},
            rf"the tensor {LAST} must have shape \(64, 32\), got \(63, 32\)",
        ),
        (
            {"model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)},
            "a tensor that is not known: model.layers.0.self_attn.q_proj.bias",
        ),
    ],
    ids=["missing", "wrong", "unknown"],
)
def test_wrong_tensors_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tensors = {name: t for name, t in {**TENSORS, **change}.items() if t is not None}
    with pytest.raises(ValueError, match=message):
        load_model(write(tmp_path, tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type must be 'bert' or 'llama' or 'mistral' or .* 't5'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"attention_bias": True}, "no tensor model.layers.0.self_attn.q_proj.bias"),
        ({"attention_bias": 1}, "attention_bias of the config must be true or false, got 1"),
        ({"mlp_bias": True}, "no tensor model.layers.0.mlp.gate_proj.bias"),
        ({"is_causal": False}, "is_causal must be True"),
        ({"sliding_window": 8}, r"fields that this reader does not know: sliding_window \(8\)"),
        ({"quantization_config": {"bits": 4}}, "does not know: quantization_config"),
        ({"head_dim": 7}, "head_dim must be even and at least 4"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters of the config has no low"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type must be 'default' or 'linear'"),
        (
            {"rope_parameters": {"rope_type": "default", "factor": 2.0}},
            r"rope_parameters of the config has fields .* not know: factor \(2\.0\)",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling and rope_parameters must not differ",
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "must be at least 1, got 0"),
        ({"rope_parameters": {"rope_theta": 0.5}}, "rope_theta must be more than 1, got 0"),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 2,
                    "low_freq_factor": 4,
                    "high_freq_factor": 4,
                }
            },
            "low_freq_factor must be less than high_freq_factor, 4",
        ),
        ({"model_type": "qwen2", "layer_types": []}, "layer_types must have an entry for each"),
        (
            {"model_type": "qwen2", "layer_types": ["chunked_attention"] * 2},
            r"layer_types\[0\] must be 'full_attention' or 'sliding_attention'",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2},
            "sliding_window must be a number where layer_types has layers with it",
        ),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias must be False"),
        ({"model_type": "qwen3", "mlp_bias": True}, "mlp_bias must be False for this reader, got"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers must have a 0 or 1"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 2}, "know: layer_types"),
        ({"hidden_size": None}, "the config has no hidden_size"),
        ({"num_hidden_layers": 3}, "has no tensor model.layers.2"),
        ({"num_key_value_heads": 3}, "the key heads must divide the 4 query heads, got 3"),
        ({"tie_word_embeddings": False}, "the checkpoint has no tensor lm_head.weight"),
        (
            {"rope_parameters": {"type": "linear", "rope_type": "yarn"}},
            "type must be 'yarn' for this reader, got 'linear'",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor must be None or 1"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
            "rope_parameters of the config must be the same in all layers",
        ),
    ],
)
def test_a_config_with_parts_we_do_not_compute_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(write(tmp_path, config=CONFIG | change))


def test_older_configs_have_the_rotary_base_beside_the_rest(tmp_path: Path) -> None:
    old = {name: value for name, value in CONFIG.items() if name != "rope_parameters"}
    for change, base in (
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "default"}}, 5e5),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 6e5}}, 6e5),
        ({}, 1e4),
    ):
        model = load_model(write(tmp_path, config=old | change))
        assert model.config.rope_base == base


def test_ends_and_chat_template_are_read(tmp_path: Path) -> None:
    write(tmp_path)
    assert load_model(tmp_path).stop == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')
    model = load_model(tmp_path)
    assert (model.stop, model.chat_template) == ((5, 2), "{{ x }}")
    with pytest.raises(ValueError, match=r"neither tokenizer\.json nor spiece\.model"):
        model.tokenizer.encode("text")


def test_a_tokenizer_is_read_and_streams_what_it_decodes(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(write(tmp_path) / "tokenizer.json"))
    read = load_model(tmp_path).tokenizer
    ids = read.encode("a é b")
    assert ids.dtype == np.int32
    assert read.decode(ids) == "a é b"
    assert list(read.stream(ids)) == ["a", " ", "é", " ", "b"]
    tokens, mask = pad([ids, ids[:2]])
    assert tokens.shape == mask.shape == (2, len(ids))
    assert mask.sum(axis=1).tolist() == [len(ids), 2]
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a readable tokenizer"):
        load_model(tmp_path)


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, DAMAGED),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "it is empty"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), DAMAGED),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), DAMAGED),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not readable"),
        (lambda folder: (folder / INDEX).write_text("{}"), "is not an index of tensors"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(write(tmp_path))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_missing_files_and_wrong_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_model(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got 'int8'"):
        load_model(tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="ffn_k must have an entry for each of 2 layers, got 3"):
        load_model(tmp_path, ffn_k=[1, 2, 3])


def test_norms_of_the_first_bert_checkpoints_are_read(tmp_path: Path) -> None:
    tensors = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): np.array(own)
        for name, own in read_checkpoint(DATA / "bert").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(DATA / "bert" / "config.json", tmp_path)
    old, new = flatten(load_model(tmp_path).params), flatten(load_model(DATA / "bert").params)
    assert old.keys() == new.keys()
    assert all(np.array_equal(old[path], new[path]) for path in new)


def test_bert_without_its_prefix_and_head_is_read(tmp_path: Path) -> None:
    tensors = {
        name.removeprefix("bert."): np.array(tensor)
        for name, tensor in read_checkpoint(DATA / "bert").items()
        if name.startswith("bert.")
    }
    pooler = {"pooler.dense.weight": np.eye(32), "pooler.dense.bias": np.zeros(32)}
    save_file(tensors | pooler, tmp_path / "model.safetensors")
    shutil.copy(DATA / "bert" / "config.json", tmp_path)
    params = load_model(tmp_path).params
    assert "head" not in params
    assert params["pooler"]["weight"].dtype == np.float32
    assert expected("bert")["loss"].shape == (1,)


@pytest.mark.parametrize("name", ["bert", "t5_relu", "t5_gated_gelu"])
def test_no_field_of_a_config_is_ignored_in_silence(name: str, tmp_path: Path) -> None:
    """Another value is refused, or makes another model, or the field is listed as harmless."""
    config = json.loads((DATA / name / "config.json").read_text())
    family = FAMILIES[config["model_type"]]
    shutil.copy(DATA / name / "model.safetensors", tmp_path)

    def load(changes: dict[str, Any]) -> Any:
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        model = load_model(tmp_path)
        return model.config, flatten(model.params).keys()

    unchanged = load({})
    for field, value in config.items():
        if field in HARMLESS or field in family.harmless:
            continue
        if isinstance(value, bool):
            other: Any = not value
        else:
            other = "silu" if isinstance(value, str) else (value or 0) + 1
        if value == "relu" and field == "feed_forward_proj":
            other = "gated-silu"  # the activation alone is that of dense_act_fn, as in transformers
        try:
            changed = load({field: other})
        except (TypeError, ValueError):
            continue
        assert changed != unchanged, field
    with pytest.raises(ValueError, match=r"does not know: is_causal \(False\)"):
        load({"is_causal": False})
