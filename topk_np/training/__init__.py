"""Training on parameters that are nested dicts of arrays: no state but what is passed along."""

from topk_np.training.adamw import AdamWState, adamw, adamw_init, clip_by_global_norm
from topk_np.training.classifier import (
    Classifier,
    classifier,
    classifier_bwd,
    classifier_fwd,
)
from topk_np.training.lora import LoRAGrads, lora, lora_bwd, lora_fwd, lora_init
from topk_np.training.params import ParamsError, load_params, save_params
from topk_np.training.schedules import constant, warmup_cosine, warmup_linear
from topk_np.training.trees import flatten, tree_map, unflatten

__all__ = [
    "AdamWState",
    "Classifier",
    "LoRAGrads",
    "ParamsError",
    "adamw",
    "adamw_init",
    "classifier",
    "classifier_bwd",
    "classifier_fwd",
    "clip_by_global_norm",
    "constant",
    "flatten",
    "load_params",
    "lora",
    "lora_bwd",
    "lora_fwd",
    "lora_init",
    "save_params",
    "tree_map",
    "unflatten",
    "warmup_cosine",
    "warmup_linear",
]
