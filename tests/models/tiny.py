"""A tiny Llama with random weights, and what the reference implementation computes with it."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from topk_np.models import load_model
from topk_np.models.llama import Llama

DATA = Path(__file__).parents[1] / "data" / "llama"
CONFIG: dict[str, Any] = json.loads((DATA / "config.json").read_text())
TENSORS = load_file(DATA / "model.safetensors")
EXPECTED = load_file(DATA / "expected.safetensors")
MODEL: Llama = load_model(DATA)

END = "<|end|>"
# one token a character, spelled as byte-level BPE does (space and newline are Ġ and Ċ)
CHARACTERS = [END, "Ġ", "Ċ", *(string.ascii_letters + string.digits + string.punctuation)][:93]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the")]
TOKENS = [*CHARACTERS, "th", "the", "Ġthe"]
KINDS = [3, *[1] * (len(TOKENS) - 1)]


def fields() -> dict[str, Any]:
    """Metadata of the tiny model's GGUF file by the writer's method, to be changed by a test."""
    return {
        "add_context_length": 2048,
        "add_head_count": CONFIG["num_attention_heads"],
        "add_head_count_kv": CONFIG["num_key_value_heads"],
        "add_layer_norm_rms_eps": CONFIG["rms_norm_eps"],
        "add_rope_freq_base": CONFIG["rope_parameters"]["rope_theta"],
        "add_tokenizer_model": "gpt2",
        "add_tokenizer_pre": "smollm",
        "add_token_list": TOKENS,
        "add_token_types": KINDS,
        "add_token_merges": [" ".join(pair) for pair in MERGES],
        "add_unk_token_id": 0,
    }


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    metadata: dict[str, Any] | None = None,
    embedding: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """Write the tiny model as converters do: their tensor names, rotary features interleaved."""
    writer = gguf.GGUFWriter(path, architecture)
    for method, value in (fields() if metadata is None else metadata).items():
        getattr(writer, method)(*(value if isinstance(value, tuple) else (value,)))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, CONFIG["num_hidden_layers"])
    for name, tensor in TENSORS.items():
        if name.endswith("q_proj.weight"):
            tensor = interleaved(tensor, CONFIG["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            tensor = interleaved(tensor, CONFIG["num_key_value_heads"])
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None
        if target == "token_embd.weight":
            packed = gguf.quantize(tensor, embedding)
            writer.add_tensor(target, packed, raw_dtype=embedding)
        else:
            writer.add_tensor(target, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection, from the half-split to the interleaved rotary layout."""
    width = weight.shape[0] // heads
    split = weight.reshape(heads, 2, width // 2, weight.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(weight.shape)


def with_layout(model: Llama, layout: Any) -> Llama:
    """The same weights read in another rotary layout."""
    return replace(model, config=replace(model.config, rope_layout=layout))
