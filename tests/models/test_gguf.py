"""Reading GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.models.test_llama import assert_agrees
from tests.models.tiny import EXPECTED, TENSORS, TOKENS, fields, write_gguf
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
            "general.architecture must be 'llama'",
        ),
        (_metadata(add_tokenizer_model="llama"), "tokenizer.ggml.model must be 'gpt2'"),
        (_metadata(add_context_length=None), "the file has no llama.context_length"),
        (
            _metadata(add_rope_scaling_type=gguf.RopeScalingType.LINEAR),
            "llama.rope.scaling.type must be 'none' for this reader, got 'linear'",
        ),
        (
            _metadata(add_rope_scaling_factor=4.0),
            "llama.rope.scaling.factor must be 1.0 or 0.0 for this reader, got 4.0",
        ),
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
