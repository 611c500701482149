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
from topk_np.models.checkpoint import read_gguf
from topk_np.models.llama import forward, logits


def test_a_gguf_file_gives_the_logits_of_the_reference(tiny_gguf: Path) -> None:
    model = read_gguf(tiny_gguf)
    hidden = forward(model, EXPECTED["input_ids"])
    assert_agrees(hidden, EXPECTED["last_hidden"])
    assert_agrees(logits(model, hidden), EXPECTED["logits"])
    assert model.config.context == 2048
    assert model.tokenizer.decode(model.tokenizer.encode("the end 12")) == "the end 12"


def test_weights_are_dequantised_to_float32(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "q8.gguf", embedding=gguf.GGMLQuantizationType.Q8_0)
    embedding = read_gguf(path).params["embedding"]
    exact = TENSORS["model.embed_tokens.weight"]
    assert embedding.dtype == np.float32
    assert 0 < np.max(np.abs(embedding - exact)) < np.max(np.abs(exact)) / 127


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
        (_metadata(add_context_length=None), "the file has no field llama.context_length"),
        (
            _metadata(add_rope_scaling_type=gguf.RopeScalingType.LINEAR),
            "llama.rope.scaling.type must be 'none' for this reader, got 'linear'",
        ),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "x.gguf"
    make(path)
    with pytest.raises(ValueError, match=message):
        read_gguf(path)
