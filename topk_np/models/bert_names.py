"""How checkpoints name and describe a BERT model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from topk_np.models.bert import BertConfig
from topk_np.models.configs import ACTIVATION_NAMES, check, layers, number, positive
from topk_np.models.names import Name

_LAYER = {
    "attention.query": ("attention.self.query.weight", "D D", False),
    "attention.query_bias": ("attention.self.query.bias", "D", False),
    "attention.key": ("attention.self.key.weight", "D D", False),
    "attention.key_bias": ("attention.self.key.bias", "D", False),
    "attention.value": ("attention.self.value.weight", "D D", False),
    "attention.value_bias": ("attention.self.value.bias", "D", False),
    "attention.out": ("attention.output.dense.weight", "D D", False),
    "attention.out_bias": ("attention.output.dense.bias", "D", False),
    "attention_norm.weight": ("attention.output.LayerNorm.weight", "D", False),
    "attention_norm.bias": ("attention.output.LayerNorm.bias", "D", False),
    "ffn.keys": ("intermediate.dense.weight", "F D", False),
    "ffn.key_bias": ("intermediate.dense.bias", "F", False),
    "ffn.values": ("output.dense.weight", "D F", True),
    "ffn.value_bias": ("output.dense.bias", "D", False),
    "ffn_norm.weight": ("output.LayerNorm.weight", "D", False),
    "ffn_norm.bias": ("output.LayerNorm.bias", "D", False),
}


def bert_names(tensors: Collection[str], config: Mapping[str, Any], /) -> list[Name]:
    """Where each parameter comes from; pooler and masked-LM head where there are such."""
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    names = [
        Name("embedding.tokens", f"{prefix}embeddings.word_embeddings.weight", "T D"),
        Name("embedding.positions", f"{prefix}embeddings.position_embeddings.weight", "P D"),
        Name("embedding.types", f"{prefix}embeddings.token_type_embeddings.weight", "S D"),
        *_pair("embedding.norm", f"{prefix}embeddings.LayerNorm", "D"),
    ]
    for i in range(layers(config, "num_hidden_layers", tensors)):
        names += [
            Name(f"layers.{i}.{path}", f"{prefix}encoder.layer.{i}.{tensor}", shape, flipped)
            for path, (tensor, shape, flipped) in _LAYER.items()
        ]
    if any(name.startswith(f"{prefix}pooler.") for name in tensors):
        names += _pair("pooler", f"{prefix}pooler.dense", "D D")
    if any(name.startswith("cls.predictions.") for name in tensors):
        names += _pair("head.dense", "cls.predictions.transform.dense", "D D")
        names += _pair("head.norm", "cls.predictions.transform.LayerNorm", "D")
        names.append(Name("head.bias", "cls.predictions.bias", "T"))
        if not config.get("tie_word_embeddings", True):
            names.append(Name("head.weight", "cls.predictions.decoder.weight", "T D"))
    return [name._replace(tensor=_as_stored(name.tensor, tensors)) for name in names]


def _as_stored(tensor: str, tensors: Collection[str]) -> str:
    """The name of a tensor; the first checkpoints call those of norms gamma and beta."""
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        former = tensor.replace(new, old)
        if tensor not in tensors and former in tensors:
            return former
    return tensor


def bert_config(config: Mapping[str, Any], /) -> BertConfig:
    """
    Read a ``config.json``.

    Raises
    ------
    ValueError
        If something is missing, or the model has a part that is not computed here.
    """
    positions = config.get("position_embedding_type", "absolute")
    check("position_embedding_type", positions, "absolute")
    check("is_decoder", config.get("is_decoder", False), False)
    activation = config.get("hidden_act", "gelu")
    check("hidden_act", activation, *ACTIVATION_NAMES)
    return BertConfig(
        heads=number(config, "num_attention_heads"),
        norm_eps=positive(config, "layer_norm_eps"),
        activation=ACTIVATION_NAMES[activation],
    )


def bert_sizes(config: Mapping[str, Any], /) -> dict[str, int]:
    """What the letters of the shapes stand for."""
    return {
        "T": number(config, "vocab_size"),
        "D": number(config, "hidden_size"),
        "F": number(config, "intermediate_size"),
        "P": number(config, "max_position_embeddings"),
        "S": number(config, "type_vocab_size"),
    }


def bert_ignored(config: Mapping[str, Any], /) -> tuple[str, ...]:
    """Tensors that are known and not needed: other heads, and copies of the head's weights."""
    decoder = r"cls\.predictions\.decoder\..*"
    return r"cls\.seq_relationship\..*", r"classifier\..*", decoder


def _pair(path: str, tensor: str, shape: str) -> list[Name]:
    """A weight and its bias."""
    first = shape.split()[0]
    return [
        Name(f"{path}.weight", f"{tensor}.weight", shape),
        Name(f"{path}.bias", f"{tensor}.bias", first),
    ]
