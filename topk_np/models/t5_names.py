"""How checkpoints name and describe a T5 model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from topk_np.models.configs import ACTIVATION_NAMES, check, layers, number, positive
from topk_np.models.names import Name
from topk_np.models.t5 import T5Config

# Copies of the embedding, and a table that old checkpoints have and no model uses.
_IGNORED = (
    r"(encoder|decoder)\.embed_tokens\.weight",
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)

_PROJECTIONS = {
    "query": ("q", "Q D"),
    "key": ("k", "Q D"),
    "value": ("v", "Q D"),
    "out": ("o", "D Q"),
}


def t5_names(tensors: Collection[str], config: Mapping[str, Any], /) -> list[Name]:
    """Where each parameter comes from."""
    names = [Name("embedding", "shared.weight", "T D")]
    for part, depth in zip(("encoder", "decoder"), _depths(tensors, config), strict=True):
        first = f"{part}.block.0.layer.0.SelfAttention"
        names.append(Name(f"{part}.bias", f"{first}.relative_attention_bias.weight", "B H"))
        for i in range(depth):
            names += _layer_names(f"{part}.layers.{i}", f"{part}.block.{i}.layer", part, config)
        names.append(Name(f"{part}.norm", f"{part}.final_layer_norm.weight", "D"))
    if not config.get("tie_word_embeddings", True):
        names.append(Name("head", "lm_head.weight", "T D"))
    return names


def t5_ignored(config: Mapping[str, Any], /) -> tuple[str, ...]:
    """Tensors that are known and not needed."""
    return (*_IGNORED, r"lm_head\.weight") if config.get("tie_word_embeddings", True) else _IGNORED


def _layer_names(path: str, tensor: str, part: str, config: Mapping[str, Any]) -> list[Name]:
    attentions = [("attention", "SelfAttention"), ("cross", "EncDecAttention")]
    names = []
    for i, (ours, theirs) in enumerate(attentions[: 1 if part == "encoder" else 2]):
        names.append(Name(f"{path}.{ours}_norm", f"{tensor}.{i}.layer_norm.weight", "D"))
        names += [
            Name(f"{path}.{ours}.{name}", f"{tensor}.{i}.{theirs}.{letter}.weight", shape)
            for name, (letter, shape) in _PROJECTIONS.items()
        ]
    last = f"{tensor}.{1 if part == 'encoder' else 2}"
    names.append(Name(f"{path}.ffn_norm", f"{last}.layer_norm.weight", "D"))
    if _gated(config):
        names.append(Name(f"{path}.ffn.gate", f"{last}.DenseReluDense.wi_0.weight", "F D"))
        names.append(Name(f"{path}.ffn.keys", f"{last}.DenseReluDense.wi_1.weight", "F D"))
    else:
        names.append(Name(f"{path}.ffn.keys", f"{last}.DenseReluDense.wi.weight", "F D"))
    names.append(Name(f"{path}.ffn.values", f"{last}.DenseReluDense.wo.weight", "D F", True))
    return names


def t5_config(config: Mapping[str, Any], /) -> T5Config:
    """
    Read a ``config.json``.

    Raises
    ------
    ValueError
        If something is missing, or the model has a part that is not computed here.
    """
    activation = _projection(config).removeprefix("gated-")
    check("feed_forward_proj", activation, *ACTIVATION_NAMES)
    if _gated(config) and activation == "gelu":
        activation = "gelu_new"  # as v1.1 means it, whatever its configs say
    tied = config.get("tie_word_embeddings", True)
    scaled = config.get("scale_decoder_outputs", tied)
    start = config.get("decoder_start_token_id")
    padding = config.get("pad_token_id") or 0
    return T5Config(
        heads=number(config, "num_heads"),
        norm_eps=positive(config, "layer_norm_epsilon", 1e-6),
        activation=ACTIVATION_NAMES[activation],
        max_distance=number(config, "relative_attention_max_distance", 128),
        output_scale=number(config, "d_model") ** -0.5 if scaled else 1.0,
        start=padding if start is None else start,
        padding=padding,
    )


def t5_sizes(config: Mapping[str, Any], /) -> dict[str, int]:
    """What the letters of the shapes stand for."""
    heads = number(config, "num_heads")
    return {
        "T": number(config, "vocab_size"),
        "D": number(config, "d_model"),
        "F": number(config, "d_ff"),
        "Q": heads * number(config, "d_kv"),
        "B": number(config, "relative_attention_num_buckets"),
        "H": heads,
    }


def _depths(tensors: Collection[str], config: Mapping[str, Any]) -> tuple[int, int]:
    encoder = layers(config, "num_layers", tensors)
    given = config.get("num_decoder_layers")
    return encoder, encoder if given is None else layers(config, "num_decoder_layers", tensors)


def _projection(config: Mapping[str, Any]) -> str:
    return str(config.get("feed_forward_proj", "relu"))


def _gated(config: Mapping[str, Any]) -> bool:
    return _projection(config).startswith("gated-")
