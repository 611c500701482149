"""The metadata of a GGUF file, checked: what a Llama model and its tokenizer need of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from topk_np.models.bpe import ByteBPE
from topk_np.models.configs import check, check_groups
from topk_np.models.llama_blocks import LlamaConfig

ENDS = ("<|endoftext|>", "<|im_end|>")  # end a text or a turn, whether or not a file says so

# What stretches rotary positions, and what it is where nothing does; a factor needs no type.
_PLAIN_ROPE = (
    ("llama.rope.scaling.type", "none"),
    ("llama.rope.scaling.factor", 1.0, 0.0),
    ("llama.rope.scale_linear", 1.0, 0.0),
)

Fields = Mapping[str, Any]
_REQUIRED = object()


def config_from_fields(fields: Fields) -> LlamaConfig:
    """What the weights do not say themselves."""
    check("general.architecture", fields.get("general.architecture"), "llama")
    for name, default, *others in _PLAIN_ROPE:
        check(name, fields.get(name, default), default, *others)
    heads = _count(fields, "llama.attention.head_count")
    groups = _count(fields, "llama.attention.head_count_kv", heads)
    check_groups(heads, groups)
    return LlamaConfig(
        heads=heads,
        groups=groups,
        norm_eps=_positive(fields, "llama.attention.layer_norm_rms_epsilon"),
        rope_base=_positive(fields, "llama.rope.freq_base", 10_000.0),
        rope_layout="interleaved",
        context=_count(fields, "llama.context_length"),
    )


def sizes_from_fields(fields: Fields, config: LlamaConfig, width: int) -> dict[str, int]:
    """What the letters of the shapes in `llama_names` stand for; `width` is the embedding's."""
    width = _count(fields, "llama.embedding_length", width)
    head = _count(fields, "llama.attention.key_length", max(1, width // config.heads))
    turned = _count(fields, "llama.rope.dimension_count", head)
    check("llama.rope.dimension_count", turned, head)
    sizes = {"D": width, "Q": config.heads * head, "K": config.groups * head}
    if "llama.feed_forward_length" in fields:
        sizes["F"] = _count(fields, "llama.feed_forward_length")
    return sizes


def depth_from_fields(fields: Fields, most: int) -> int | None:
    """How many layers there are, if the file says so, and at most so many."""
    name = "llama.block_count"
    return min(most, _count(fields, name)) if name in fields else None


def tokenizer_from_fields(fields: Fields) -> ByteBPE:
    """The tokenizer."""
    check("tokenizer.ggml.model", fields.get("tokenizer.ggml.model"), "gpt2")
    merges = []
    for merge in _items(fields, "tokenizer.ggml.merges", str):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    return ByteBPE(
        _items(fields, "tokenizer.ggml.tokens", str),
        merges,
        kinds=_items(fields, "tokenizer.ggml.token_type", int),
        split=_field(fields, "tokenizer.ggml.pre", str, "default"),
        unknown=_field(fields, "tokenizer.ggml.unknown_token_id", int, None),
        first=_first(fields),
    )


def _first(fields: Fields) -> int | None:
    """The token that the file wants before every text."""
    if fields.get("tokenizer.ggml.add_bos_token", False) is not True:
        return None
    return int(_field(fields, "tokenizer.ggml.bos_token_id", int))


def stops_from_fields(fields: Fields) -> tuple[int, ...]:
    """Tokens after which there is nothing to be generated."""
    names = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot"))
    named = (_field(fields, name, int, None) for name in names)
    tokens = _items(fields, "tokenizer.ggml.tokens", str)
    known = (tokens.index(token) for token in ENDS if token in tokens)
    return tuple(sorted({i for i in (*named, *known) if i is not None}))


def template_from_fields(fields: Fields) -> str:
    """How a conversation is written down; empty if the file does not say."""
    template: str = _field(fields, "tokenizer.chat_template", str, "")
    return template


def _field(fields: Fields, name: str, kind: type, default: Any = _REQUIRED) -> Any:
    if name not in fields:
        if default is _REQUIRED:
            raise ValueError(f"the file has no field {name}")
        return default
    value = fields[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} must be {kind.__name__}, got {type(value).__name__}")
    return value


def _items(fields: Fields, name: str, kind: type) -> list[Any]:
    items: list[Any] = _field(fields, name, list)
    if not all(isinstance(item, kind) for item in items):
        raise ValueError(f"{name} must be a list of {kind.__name__}")
    return items


def _count(fields: Fields, name: str, default: Any = _REQUIRED) -> int:
    count: int = _field(fields, name, int, default)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count


def _positive(fields: Fields, name: str, default: Any = _REQUIRED) -> float:
    number: float = _field(fields, name, float, default)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {number}")
    return number
