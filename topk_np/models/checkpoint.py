"""Read models from GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.models.bpe import ByteBPE
from topk_np.models.configs import check
from topk_np.models.llama import Llama, LlamaConfig
from topk_np.models.llama_names import llama_names
from topk_np.models.model import Model
from topk_np.models.names import gather

ENDS = ("<|endoftext|>", "<|im_end|>")  # end a text or a turn, whether or not a file says so


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
        The model, its tokenizer, and what generation needs.

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
            tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(
                np.float32, copy=False
            )
            for tensor in reader.tensors
        }
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable GGUF file: {error}") from error
    config = _config_from_fields(fields)
    return Model(
        config,
        gather(tensors, llama_names(tensors, "gguf"), sizes={}, convert=convert),
        tokenizer=_tokenizer_from_fields(fields),
        stop=_stops_from_fields(fields),
        chat_template=fields.get("tokenizer.chat_template", ""),
    )


def _config_from_fields(fields: Mapping[str, Any]) -> LlamaConfig:
    check("general.architecture", fields.get("general.architecture"), "llama")
    check("llama.rope.scaling.type", fields.get("llama.rope.scaling.type", "none"), "none")
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
    check("tokenizer.ggml.model", fields.get("tokenizer.ggml.model"), "gpt2")
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
