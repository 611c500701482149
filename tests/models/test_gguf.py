"""Reading GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.models import llamas
from tests.models.test_llama import assert_agrees
from tests.models.tiny import EXPECTED, TENSORS, TOKENS, fields, interleaved, write_gguf
from topk_np.models import load_model
from topk_np.models.gguf import read_gguf
from topk_np.models.llama import forward, logits


def test_a_gguf_file_gives_the_logits_of_the_reference(tiny_gguf: Path) -> None:
    model = read_gguf(tiny_gguf)
    hidden = forward(model, EXPECTED["input_ids"])
    assert_agrees(hidden, EXPECTED["last_hidden"])
    assert_agrees(logits(model, hidden), EXPECTED["logits"])
    assert model.config.context == 2048
    assert model.tokenizer.decode(model.tokenizer.encode("the end 12")) == "the end 12"


@pytest.mark.parametrize(
    ("kind", "steps"), [("F16", 2**10), ("BF16", 2**7), ("Q8_0", 127), ("Q4_0", 8), ("Q4_1", 8)]
)
def test_weights_are_dequantised_to_float32(tmp_path: Path, kind: str, steps: int) -> None:
    path = write_gguf(tmp_path / "q.gguf", embedding=gguf.GGMLQuantizationType[kind])
    embedding = read_gguf(path).params["embedding"]
    exact = TENSORS["model.embed_tokens.weight"]
    assert embedding.dtype == np.float32
    assert 0 < np.max(np.abs(embedding - exact)) < np.max(np.abs(exact)) / steps
    half = load_model(path, dtype="float16").params["embedding"]
    assert np.array_equal(half, embedding.astype(np.float16))


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_blocks_of_256_weights_are_read_as_the_package_reads_them(
    tmp_path: Path, kind: str
) -> None:
    """The package cannot make such blocks: these are arbitrary bytes."""
    kind_of, width = gguf.GGMLQuantizationType[kind], 256
    size = gguf.GGML_QUANT_SIZES[kind_of][1]
    blocks = np.random.default_rng(0).integers(0, 128, (96, size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    for method, value in fields().items():
        getattr(writer, method)(value)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=kind_of)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    square, half = (width, width), (width // 2, width)
    for name, shape in (
        ("attn_norm", (width,)),
        ("attn_q", square),
        ("attn_k", half),
        ("attn_v", half),
        ("attn_output", square),
        ("ffn_norm", (width,)),
        ("ffn_gate", half),
        ("ffn_up", half),
        ("ffn_down", half[::-1]),
    ):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    embedding = read_gguf(tmp_path / "k.gguf").params["embedding"]
    with np.errstate(all="ignore"):
        wanted = gguf.dequantize(blocks, kind_of)
    assert embedding.shape == (96, width)
    assert np.array_equal(embedding, wanted, equal_nan=True)
    assert len(np.unique(embedding)) > 100


def test_a_file_that_wants_a_token_before_every_text_gets_it(tmp_path: Path) -> None:
    metadata = fields() | {"add_bos_token_id": 4, "add_add_bos_token": True}
    tokenizer = read_gguf(write_gguf(tmp_path / "bos.gguf", metadata=metadata)).tokenizer
    plain = read_gguf(write_gguf(tmp_path / "plain.gguf")).tokenizer
    assert tokenizer.encode("the").tolist() == [4, *plain.encode("the").tolist()]


def test_a_layer_that_the_file_promises_is_missed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "two.gguf", metadata=fields() | {"add_block_count": 2})
    assert len(read_gguf(path).params["layers"]) == 2
    for count in (3, 2**31 - 1):
        path = write_gguf(tmp_path / "more.gguf", metadata=fields() | {"add_block_count": count})
        with pytest.raises(ValueError, match=r"the checkpoint has no tensor blk\.2\."):
            read_gguf(path)


def test_metadata_with_a_default_may_be_missing(tmp_path: Path) -> None:
    few = {
        name: value
        for name, value in fields().items()
        if name not in ("add_rope_freq_base", "add_tokenizer_pre")
    }
    few["add_unk_token_id"] = 0
    assert read_gguf(write_gguf(tmp_path / "few.gguf", metadata=few)).config.rope_base == 10_000
    del few["add_head_count_kv"]  # as many as there are heads, but these keys are for fewer
    path = write_gguf(tmp_path / "fewer.gguf", metadata=few)
    with pytest.raises(ValueError, match=r"attn_k.* must have shape \(32, 32\), got \(16, 32\)"):
        read_gguf(path)


def test_the_ends_of_texts_and_the_chat_template_are_read(tmp_path: Path) -> None:
    plain = read_gguf(write_gguf(tmp_path / "plain.gguf"))
    assert (plain.stop, plain.chat_template) == ((), "")
    tokens = ["<|im_end|>" if token == "b" else token for token in TOKENS]
    changes = {
        "add_token_list": tokens,
        "add_eos_token_id": 7,
        "add_eot_token_id": 2,
        "add_chat_template": "{{ message }}",
    }
    model = read_gguf(write_gguf(tmp_path / "ends.gguf", metadata=fields() | changes))
    assert model.stop == (2, tokens.index("<|im_end|>"), 7)
    assert model.chat_template == "{{ message }}"


def as_gguf(path: Path, case: str, **changes: Any) -> Path:
    """A model of the Llama family as converters write it."""
    found = llamas.golden(case)
    config, kind = found["config"], found["config"]["model_type"]
    kind = "llama" if kind == "mistral" else kind
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope = config["rope_parameters"]
    metadata = fields() | {
        "add_block_count": config["num_hidden_layers"],
        "add_context_length": config["max_position_embeddings"],
        "add_embedding_length": config["hidden_size"],
        "add_feed_forward_length": config["intermediate_size"],
        "add_head_count": config["num_attention_heads"],
        "add_head_count_kv": config["num_key_value_heads"],
        "add_layer_norm_rms_eps": config["rms_norm_eps"],
        "add_key_length": head,
        "add_value_length": head,
        "add_rope_dimension_count": head,
        "add_rope_freq_base": rope["rope_theta"],
    }
    if rope["rope_type"] in ("linear", "yarn"):
        metadata["add_rope_scaling_type"] = gguf.RopeScalingType(rope["rope_type"])
        metadata["add_rope_scaling_factor"] = rope["factor"]
    if rope["rope_type"] == "yarn":
        metadata["add_rope_scaling_orig_ctx_len"] = rope["original_max_position_embeddings"]
    if config.get("sliding_window"):
        metadata["add_sliding_window"] = config["sliding_window"]
    writer = gguf.GGUFWriter(path, kind)
    for method, value in (metadata | changes).items():
        getattr(writer, method)(*(value if isinstance(value, tuple) else (value,)))
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, tensor in llamas.tensors(found["shapes"]).items():
        stem, _, suffix = name.rpartition(".")
        if kind in ("llama", "smollm3"):
            for projection in ("q_proj", "k_proj"):
                if stem.endswith(projection):
                    rows = interleaved(tensor.reshape(len(tensor), -1), len(tensor) // head)
                    tensor = rows.reshape(tensor.shape)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", tensor)
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, head))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama3_factors(rope: dict[str, Any], head: int) -> np.ndarray:
    """The factors that converters write for the frequencies of Llama 3.1 and later."""
    factors = []
    for i in range(head // 2):
        wave = 2 * np.pi * rope["rope_theta"] ** (2 * i / head)
        turns = rope["original_max_position_embeddings"] / wave
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = min(max((turns - low) / (high - low), 0), 1)
        factors.append(1 / ((1 - kept) / rope["factor"] + kept))
    return np.asarray(factors, np.float32)


@pytest.mark.parametrize(
    "case",
    [
        *("llama", "llama_3_1", "llama_3_2", "llama_biases", "llama_linear", "mistral"),
        *("mistral_full", "qwen2", "qwen2_5", "qwen3", "smollm3"),
    ],
)
def test_gguf_files_of_the_family_give_the_logits_of_transformers(
    case: str, tmp_path: Path
) -> None:
    found, model = llamas.golden(case), read_gguf(as_gguf(tmp_path / "x.gguf", case))
    got = logits(model, forward(model, llamas.tokens()))
    np.testing.assert_allclose(
        llamas.sample(got), found["logits"], rtol=0, atol=1e-4 * found["scale"]
    )


def test_llama_3_begins_texts_with_a_token_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    for changes, first in (({}, [4]), ({"add_add_bos_token": False}, [])):
        options = {"add_tokenizer_pre": "llama-bpe", "add_bos_token_id": 4, **changes}
        tokenizer = read_gguf(as_gguf(tmp_path / "x.gguf", "llama", **options)).tokenizer
        assert tokenizer.encode("the").tolist() == [*first, TOKENS.index("the")]


def test_files_in_another_byte_order_and_parts_of_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    for write in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file"):
        getattr(writer, write)()
    writer.close()
    with pytest.raises(ValueError, match="its bytes are in the order of another machine"):
        read_gguf(path)
    with pytest.raises(ValueError, match=r"split\.count must be 0 or 1 for this reader, got 2"):
        read_gguf(as_gguf(path, "llama", add_uint16=("split.count", 2)))


def _truncated(path: Path) -> None:
    whole = write_gguf(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _metadata(**changes: Any) -> Callable[[Path], object]:
    metadata = {name: value for name, value in {**fields(), **changes}.items() if value is not None}
    return lambda path: write_gguf(path, metadata=metadata)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), r"x\.gguf is not a readable GGUF file: .*empty"),
        (lambda path: path.write_bytes(b"\0" * 999), r"is not a readable GGUF file: .*magic"),
        (lambda path: path.write_bytes(b"GG"), r"is not a readable GGUF file"),
        (_truncated, r"is not a readable GGUF file"),
        (
            lambda path: write_gguf(path, architecture="gpt2"),
            "general.architecture must be 'llama' or 'qwen2' or 'qwen3' or 'smollm3'",
        ),
        (_metadata(add_tokenizer_model="llama"), "tokenizer.ggml.model must be 'gpt2'"),
        (_metadata(add_context_length=None), "the file has no llama.context_length"),
        (
            _metadata(add_rope_scaling_type=gguf.RopeScalingType.LONGROPE),
            "llama.rope.scaling.type must be None or 'none' or .*, got 'longrope'",
        ),
        (
            _metadata(add_rope_scaling_attn_factors=0.5),
            "llama.rope.scaling.attn_factor must be 1.0 for this reader, got 0.5",
        ),
        (
            _metadata(add_string=("tokenizer.ggml.eos_token_id", "x")),
            "tokenizer.ggml.eos_token_id must be int, got str",
        ),
        (_metadata(add_token_types=["x"]), "tokenizer.ggml.token_type must be a list of int"),
        (_metadata(add_expert_count=4), r"does not know: llama.expert_count \(4\)"),
        (_metadata(add_causal_attention=False), "is_causal must be True"),
        (_metadata(add_value_length=4), "llama.attention.value_length must be 8"),
        (_metadata(add_tokenizer_pre="tekken"), "tokenizer.ggml.pre must be 'default' or 'gpt-2'"),
        (
            _metadata(add_rope_dimension_count=4),
            "llama.rope.dimension_count must be 8 for this reader, got 4",
        ),
        (_metadata(add_head_count_kv=3), "the key heads must divide the 4 query heads, got 3"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "x.gguf"
    make(path)
    with pytest.raises(ValueError, match=message):
        read_gguf(path)
