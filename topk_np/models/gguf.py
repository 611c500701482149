"""Models of the family Llama from GGUF files, dequantised, with their tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.models.family import Fields, Layout, check, gather
from topk_np.models.llama import Llama, layout
from topk_np.models.model import Model
from topk_np.models.tokenizers import ByteBPE

MOST_VALUES = 2**22  # of a header: some times those of the largest vocabularies
ENDS = ("<|endoftext|>", "<|im_end|>")  # end a text or a turn, even if a file does not say so

KEYS = {  # the metadata of a model, by the fields of a config
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "head_dim": "attention.key_length",
    "num_hidden_layers": "block_count",
    "vocab_size": "vocab_size",
}
TENSORS = {  # the tensors of a layer, by those of safetensors checkpoints
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ENDS_OF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}

# Metadata that stretch rotary positions, with their values where nothing does.
PLAIN_ROPE = (
    ("rope.scaling.type", "none"),
    ("rope.scaling.factor", 1.0, 0.0),
    ("rope.scale_linear", 1.0, 0.0),
)

Metadata = Mapping[str, Any]
_REQUIRED = object()


def read_gguf(
    path: str | PathLike[str], /, *, convert: Callable[[Array], Array] = lambda tensor: tensor
) -> Llama:
    """
    Read a Llama model and its tokenizer from a GGUF file, dequantising all weights to float32.

    Parameters
    ----------
    path : path
        The file. Needs the package ``gguf`` (extra ``demo``).
    convert : callable, optional
        Called with each dequantised tensor.

    Returns
    -------
    Llama
        The model with its tokenizer, stop tokens and chat template.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged, or holds a model or tokenizer of another kind.
    """
    metadata, tensors = _read(path)
    found = _layout(metadata, tensors)
    return Model(
        found.config,
        gather(tensors, found, convert=convert),
        tokenizer=_tokenizer(metadata),
        stop=_stops(metadata),
        chat_template=_field(metadata, "tokenizer.chat_template", str, ""),
    )


def _read(path: str | PathLike[str]) -> tuple[Metadata, dict[str, np.ndarray]]:
    """The metadata of a file, and its dequantised tensors."""
    import gguf

    class Reader(gguf.GGUFReader):
        values = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **named: Any) -> Any:
            # Strings sliced from an np.memmap take three times as long as from an ndarray.
            self.data: Any = np.asarray(self.data)
            self.values += 1
            # Without these a wrong length is an endless loop, and a list of all the memory.
            if offset + np.dtype(dtype).itemsize * int(count) > self.data.size:
                raise ValueError("it is cut off, or a length in it is wrong")
            if self.values > MOST_VALUES:
                raise ValueError(f"its header has more than {MOST_VALUES} values")
            return super()._get(offset, dtype, count, *more, **named)

    try:
        reader = Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        with np.errstate(all="ignore"):  # weights may be any numbers
            tensors = {
                tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(
                    np.float32, copy=False
                )
                for tensor in reader.tensors
            }
    except NotImplementedError as error:  # by gguf, of a kind of quantisation that it cannot undo
        raise ValueError(f"{path} holds weights that gguf cannot dequantise: {error}") from error
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is not a readable GGUF file: {error}") from error
    return fields, tensors


def _layout(metadata: Metadata, tensors: Mapping[str, np.ndarray]) -> Layout:
    """The layout of the config that says the same as the metadata, with the names of the file."""
    check("general.architecture", metadata.get("general.architecture"), "llama")
    spelling = {field: f"llama.{key}" for field, key in KEYS.items()}
    for key, default, *others in PLAIN_ROPE:
        check(f"llama.{key}", metadata.get(f"llama.{key}", default), default, *others)
    embedding = tensors.get("token_embd.weight", np.empty((1, 1)))  # `gather` wants it
    defaults = {
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[-1],
        "intermediate_size": tensors.get("blk.0.ffn_up.weight", embedding).shape[0],
        "num_hidden_layers": sum(name.endswith(".attn_q.weight") for name in tensors) or 1,
    }
    given = {field: metadata[key] for field, key in spelling.items() if key in metadata}
    tied = "output.weight" not in tensors
    fields = {**defaults, **given, "tie_word_embeddings": tied, "model_type": "llama"}
    found = layout(Fields(fields, "the file", spelling), [""] * len(tensors))
    width = found.sizes["Q"] // found.config.heads
    turned = metadata.get("llama.rope.dimension_count", width)
    check("llama.rope.dimension_count", turned, width)
    return found._replace(
        config=replace(found.config, rope_layout="interleaved"),
        names=[name._replace(tensor=_as_stored(name.tensor)) for name in found.names],
        ignored=(),
    )


def _as_stored(tensor: str) -> str:
    """The name in GGUF files of a tensor of a safetensors checkpoint."""
    stem = tensor.removesuffix(".weight")
    if stem in ENDS_OF_NAMES:
        return f"{ENDS_OF_NAMES[stem]}.weight"
    number, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{number}.{TENSORS[part]}.weight"


def _tokenizer(metadata: Metadata) -> ByteBPE:
    check("tokenizer.ggml.model", metadata.get("tokenizer.ggml.model"), "gpt2")
    merges = []
    for merge in _items(metadata, "tokenizer.ggml.merges", str):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    return ByteBPE(
        _items(metadata, "tokenizer.ggml.tokens", str),
        merges,
        kinds=_items(metadata, "tokenizer.ggml.token_type", int),
        split=_field(metadata, "tokenizer.ggml.pre", str, "default"),
        unknown=_field(metadata, "tokenizer.ggml.unknown_token_id", int, None),
        first=_first(metadata),
    )


def _first(metadata: Metadata) -> int | None:
    """The token that the file wants before every text."""
    if metadata.get("tokenizer.ggml.add_bos_token", False) is not True:
        return None
    return int(_field(metadata, "tokenizer.ggml.bos_token_id", int))


def _stops(metadata: Metadata) -> tuple[int, ...]:
    """The tokens after which generation ends."""
    names = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot"))
    named = (_field(metadata, name, int, None) for name in names)
    tokens = _items(metadata, "tokenizer.ggml.tokens", str)
    known = (tokens.index(token) for token in ENDS if token in tokens)
    return tuple(sorted({i for i in (*named, *known) if i is not None}))


def _field(metadata: Metadata, name: str, kind: type, default: Any = _REQUIRED) -> Any:
    if name not in metadata:
        if default is _REQUIRED:
            raise ValueError(f"the file has no {name}")
        return default
    value = metadata[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} must be {kind.__name__}, got {type(value).__name__}")
    return value


def _items(metadata: Metadata, name: str, kind: type) -> list[Any]:
    items: list[Any] = _field(metadata, name, list)
    if not all(isinstance(item, kind) for item in items):
        raise ValueError(f"{name} must be a list of {kind.__name__}")
    return items
