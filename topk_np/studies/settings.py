"""The k of a model's layers as a setting of an experiment."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from topk_np.models.model import Model
from topk_np.models.per_layer import LayerK
from topk_np.studies.names import Setting

Config = TypeVar("Config")


def with_setting(model: Model[Config], setting: Setting, /) -> Model[Config]:
    """
    The model with the k of a setting; without any it is dense.

    A setting may have ``attention_k``, ``ffn_k``, ``ffn_select``, and ``dense_layers``: a list of
    layers that keep all keys.
    """
    k: LayerK = setting.get("attention_k")
    if "dense_layers" in setting:
        k = {**dict.fromkeys(setting["dense_layers"], None), "rest": setting["attention_k"]}
    return replace(
        model,
        attention_k=k,
        ffn_k=setting.get("ffn_k"),
        ffn_select=setting.get("ffn_select", "activation"),
    )
