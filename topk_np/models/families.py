"""What the families of models differ in, where they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from topk_np.models import (
    bert,
    bert_names,
    llama_blocks,
    llama_names,
    t5,
    t5_blocks,
    t5_names,
)
from topk_np.models.configs import layers
from topk_np.models.model import Model
from topk_np.models.names import Name

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """How the checkpoints of a family are read."""

    kind: type
    """Of the config."""
    config: Callable[[Fields], Any]
    names: Callable[[Collection[str], Fields], list[Name]]
    sizes: Callable[[Fields], dict[str, int]]
    ignored: Callable[[Fields], tuple[str, ...]]
    check_ks: Callable[[Model[Any]], object]


def _llama_names(tensors: Collection[str], fields: Fields) -> list[Name]:
    depth = layers(fields, "num_hidden_layers", tensors)
    tied = fields.get("tie_word_embeddings", False)
    return llama_names.llama_names(tensors, "safetensors", depth=depth, tied=tied)


FAMILIES = {
    "bert": Family(
        bert.BertConfig,
        bert_names.bert_config,
        bert_names.bert_names,
        bert_names.bert_sizes,
        bert_names.bert_ignored,
        bert.check_ks,
    ),
    "llama": Family(
        llama_blocks.LlamaConfig,
        llama_names.llama_config,
        _llama_names,
        llama_names.llama_sizes,
        llama_names.llama_ignored,
        llama_blocks.check_ks,
    ),
    "t5": Family(
        t5.T5Config,
        t5_names.t5_config,
        t5_names.t5_names,
        t5_names.t5_sizes,
        t5_names.t5_ignored,
        t5_blocks.check_ks,
    ),
}
"""By ``model_type``."""


def family_of(model: Model[Any], /) -> Family:
    """The family of a model."""
    return next(family for family in FAMILIES.values() if type(model.config) is family.kind)
