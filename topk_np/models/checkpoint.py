"""Read Llama checkpoints: tensors named as in safetensors or GGUF files, and whole GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal, NamedTuple

import numpy as np

from topk_np._namespace import Array
from topk_np.models.bpe import ByteBPE
from topk_np.models.llama import LlamaConfig, LlamaLayer, LlamaParams

ENDS = ("<|endoftext|>", "<|im_end|>")  # end a text or a turn, whether or not a file says so


class Model(NamedTuple):
    """What a GGUF file holds: the weights, in float32, and what it takes to read and write."""

    params: LlamaParams
    tokenizer: ByteBPE
    stop: tuple[int, ...] = ()
    """Tokens after which there is nothing to be generated."""
    chat_template: str = ""
    """How a conversation is written down, in the language of Jinja."""


def read_gguf(path: str | PathLike[str], /) -> Model:
    """
    Read a Llama model and its tokenizer from a GGUF file, dequantising all weights to float32.

    Parameters
    ----------
    path : path
        The file. Needs the package ``gguf`` (extra ``demo``).

    Returns
    -------
    Model
        `params`, `tokenizer`, and what generation needs.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged, or holds a model or tokenizer of another kind.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        # 100,000 strings sliced from an np.memmap take three times as long as from an ndarray
        def _get(self, *args: Any, **kwargs: Any) -> Any:
            self.data: Any = np.asarray(self.data)
            return super()._get(*args, **kwargs)

    try:
        reader = Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {
            tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            for tensor in reader.tensors
        }
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable GGUF file: {error}") from error
    params = params_from_tensors(_config_from_fields(fields), tensors, style="gguf")
    template = fields.get("tokenizer.chat_template", "")
    return Model(params, _tokenizer_from_fields(fields), _stops_from_fields(fields), template)


def params_from_tensors(
    config: LlamaConfig, tensors: Mapping[str, Array], /, *, style: Literal["safetensors", "gguf"]
) -> LlamaParams:
    """
    Gather a model from NumPy tensors named as in a safetensors or a GGUF checkpoint.

    Without an output layer of its own the model is tied: the embedding serves for both.

    Raises
    ------
    ValueError
        If a tensor is missing.
    """
    column = 0 if style == "safetensors" else 1

    def get(name: str) -> Array:
        if f"{name}.weight" not in tensors:
            raise ValueError(f"the checkpoint has no tensor {name}.weight")
        return tensors[f"{name}.weight"]

    embedding, blocks, norm, head = (names[column] for names in _TOP_NAMES)
    depth = 0
    while f"{blocks}.{depth}.{_LAYER_NAMES['query'][column]}.weight" in tensors:
        depth += 1
    layers = []
    for i in range(depth):
        arrays = {
            field: get(f"{blocks}.{i}.{names[column]}") for field, names in _LAYER_NAMES.items()
        }
        layers.append(LlamaLayer(**arrays | {"down": np.ascontiguousarray(arrays["down"].T)}))
    table = get(embedding)
    return LlamaParams(
        config, table, tuple(layers), get(norm), tensors.get(f"{head}.weight", table)
    )


def config_from_json(config: Mapping[str, Any], /) -> LlamaConfig:
    """
    Read the `config.json` of a safetensors checkpoint.

    Raises
    ------
    ValueError
        If the model has a part that this file does not compute.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _check("model_type", config.get("model_type"), "llama")
    _check("hidden_act", config.get("hidden_act"), "silu")
    _check("attention_bias", config.get("attention_bias", False), False)
    _check("mlp_bias", config.get("mlp_bias", False), False)
    _check("rope_type", rope.get("rope_type", "default"), "default")
    heads = config["num_attention_heads"]
    return LlamaConfig(
        heads=heads,
        groups=config.get("num_key_value_heads", heads),
        norm_eps=config["rms_norm_eps"],
        rope_base=rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        rope_layout="half",
        context=config["max_position_embeddings"],
    )


# field -> its name in safetensors and in GGUF checkpoints
_TOP_NAMES = (
    ("model.embed_tokens", "token_embd"),
    ("model.layers", "blk"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
)
_LAYER_NAMES = {
    "attention_norm": ("input_layernorm", "attn_norm"),
    "query": ("self_attn.q_proj", "attn_q"),
    "key": ("self_attn.k_proj", "attn_k"),
    "value": ("self_attn.v_proj", "attn_v"),
    "output": ("self_attn.o_proj", "attn_output"),
    "ffn_norm": ("post_attention_layernorm", "ffn_norm"),
    "gate": ("mlp.gate_proj", "ffn_gate"),
    "up": ("mlp.up_proj", "ffn_up"),
    "down": ("mlp.down_proj", "ffn_down"),
}


def _config_from_fields(fields: Mapping[str, Any]) -> LlamaConfig:
    _check("general.architecture", fields.get("general.architecture"), "llama")
    _check("llama.rope.scaling.type", fields.get("llama.rope.scaling.type", "none"), "none")
    heads = _field(fields, "llama.attention.head_count")
    return LlamaConfig(
        heads=heads,
        groups=fields.get("llama.attention.head_count_kv", heads),
        norm_eps=_field(fields, "llama.attention.layer_norm_rms_epsilon"),
        rope_base=fields.get("llama.rope.freq_base", 10_000.0),
        rope_layout="interleaved",
        context=_field(fields, "llama.context_length"),
    )


def _tokenizer_from_fields(fields: Mapping[str, Any]) -> ByteBPE:
    _check("tokenizer.ggml.model", fields.get("tokenizer.ggml.model"), "gpt2")
    return ByteBPE(
        _field(fields, "tokenizer.ggml.tokens"),
        [tuple(merge.split(" ")) for merge in _field(fields, "tokenizer.ggml.merges")],
        kinds=_field(fields, "tokenizer.ggml.token_type"),
        split=fields.get("tokenizer.ggml.pre", "default"),
        unknown=fields.get("tokenizer.ggml.unknown_token_id"),
    )


def _stops_from_fields(fields: Mapping[str, Any]) -> tuple[int, ...]:
    named = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    tokens = _field(fields, "tokenizer.ggml.tokens")
    known = (tokens.index(token) for token in ENDS if token in tokens)
    return tuple(sorted({i for i in (*named, *known) if i is not None}))


def _field(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise ValueError(f"the file has no field {name}")
    return fields[name]


def _check(name: str, got: object, allowed: object) -> None:
    if got != allowed:
        raise ValueError(f"{name} must be {allowed!r} for this reader, got {got!r}")
