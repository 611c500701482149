"""Models of the family Llama from GGUF files, dequantised, with their tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.layers.rope import RopeLayout
from topk_np.models.family import Fields, Layout, check, gather
from topk_np.models.llama import Llama, layout
from topk_np.models.model import Model
from topk_np.models.names import GGUF_LAYER, GGUF_OTHERS
from topk_np.models.positions import Factors
from topk_np.models.tokenizers import LLAMA_BPE, SPLITS, ByteBPE

MOST_VALUES = 2**22  # of a header: some times those of the largest vocabularies
ENDS = ("<|endoftext|>", "<|im_end|>")  # end a text or a turn, even if a file does not say so

ARCHITECTURES: dict[str, RopeLayout] = {
    "llama": "interleaved",
    "qwen2": "half",
    "qwen3": "half",
    "smollm3": "interleaved",
}
"""The order of rotary pairs by architecture: converters reorder the rows of two of them."""

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
    "is_causal": "attention.causal",
}
YARN = {
    "original_max_position_embeddings": "original_context_length",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
FIXED = {  # metadata that this reader knows with one value only
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}
HARMLESS = {"rope.scaling.finetuned": "says that the model was trained with the rule"}
Metadata = Mapping[str, Any]
_REQUIRED = object()


def read_gguf(
    path: str | PathLike[str], /, *, convert: Callable[[Array], Array] = lambda tensor: tensor
) -> Llama:
    """
    Read a Llama, Mistral, Qwen or SmolLM3 model and its tokenizer, dequantised to float32.

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
        if reader.byte_order == "S":
            raise ValueError("its bytes are in the order of another machine")
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
    kind = metadata.get("general.architecture")
    check("general.architecture", kind, *ARCHITECTURES)
    check("split.count", metadata.get("split.count", 0), 0, 1)
    start = f"{kind}."
    values = {key.removeprefix(start): metadata[key] for key in metadata if key.startswith(start)}
    own = Fields(values, "the file", {key: start + key for key in values})
    given = {field: own[key] for field, key in KEYS.items() if key in own}
    if kind == "llama" and "attention.sliding_window" in own:
        kind, given["sliding_window"] = "mistral", own["attention.sliding_window"]
    fields = Fields(
        {
            **_defaults(given, tensors),
            **given,
            "model_type": kind,
            "tie_word_embeddings": "output.weight" not in tensors,
            "attention_bias": "blk.0.attn_q.bias" in tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in tensors,
            "rope_parameters": _rope(own, start),
        },
        "the file",
        {field: start + key for field, key in KEYS.items()},
    )
    found = layout(fields, [""] * len(tensors))
    width = found.sizes["W"]
    for key in ("rope.dimension_count", "attention.value_length"):
        check(start + key, own.get(key, width), width)
    for key, value in FIXED.items():
        check(start + key, own.get(key, value), value)
    own.refuse_unread(HARMLESS)
    config = replace(found.config, rope_layout=ARCHITECTURES[metadata["general.architecture"]])
    if (factors := tensors.get("rope_freqs.weight")) is not None:
        check("rope_freqs.weight together with rope scaling", config.scaling, None)
        check("the shape of rope_freqs.weight", factors.shape, (width // 2,))
        config = replace(config, scaling=Factors(tuple(map(float, factors))))
    return found._replace(
        config=config,
        names=[name._replace(tensor=_as_stored(name.tensor)) for name in found.names],
        ignored=(r"rope_freqs\.weight",),
    )


def _defaults(given: Metadata, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields that a file may lack, by the shapes of tensors; `gather` says which are missing."""
    embedding = tensors.get("token_embd.weight", np.empty((1, 1)))
    heads, width = given.get("num_attention_heads"), given.get("hidden_size", embedding.shape[-1])
    fields = {
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[-1],
        "intermediate_size": tensors.get("blk.0.ffn_up.weight", embedding).shape[0],
        "num_hidden_layers": sum(name.endswith(".attn_q.weight") for name in tensors) or 1,
        "num_key_value_heads": heads,
    }
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        fields["head_dim"] = width // heads
    return fields


def _rope(own: Fields, start: str) -> dict[str, Any]:
    """The rule by which rotary positions are stretched, as a config says it."""
    rule = own.get("rope.scaling.type")
    check(f"{start}rope.scaling.type", rule, None, "none", "linear", "yarn")
    factors = [own.get(f"rope.{name}") for name in ("scaling.factor", "scale_linear")]
    factor = next((factor for factor in factors if factor), 1.0)
    if rule == "yarn":
        others = {field: own.get(f"rope.scaling.{key}") for field, key in YARN.items()}
        return {"rope_type": "yarn", "factor": factor, **others}
    stretched = rule != "none" and factor != 1.0
    return {"rope_type": "linear", "factor": factor} if stretched else {}


def _as_stored(tensor: str) -> str:
    """The name in GGUF files of a tensor of a safetensors checkpoint."""
    stem, _, kind = tensor.rpartition(".")
    if stem in GGUF_OTHERS:
        return f"{GGUF_OTHERS[stem]}.{kind}"
    number, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{number}.{GGUF_LAYER[part]}.{kind}"


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
        split=_split(metadata),
        unknown=_field(metadata, "tokenizer.ggml.unknown_token_id", int, None),
        first=_first(metadata),
    )


def _split(metadata: Metadata) -> str:
    """The rule by which text is cut before merging."""
    name: str = _field(metadata, "tokenizer.ggml.pre", str, "default")
    check("tokenizer.ggml.pre", name, *SPLITS)
    return name


def _first(metadata: Metadata) -> int | None:
    """The token that the file wants before every text, which some rules imply."""
    implied = metadata.get("tokenizer.ggml.pre") in LLAMA_BPE
    if metadata.get("tokenizer.ggml.add_bos_token", implied) is not True:
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
