"""
Tiny models of all types of the Llama family, and what transformers computes with them.

`python -m tests.models.llamas_peer` writes the files of tests/data/llamas, one for each of `CASES`:
the config as transformers saves it, the shapes of the tensors, and samples of results. Weights are
not in them: they follow from the names of the tensors.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from topk_np.models import load_model
from topk_np.models.llama import Llama

DATA = Path(__file__).parents[1] / "data" / "llamas"
LENGTH, PADDING, STRIDE = 24, 5, 101

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama_3_1": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama_3_2": {
        "model_type": "llama",
        "rope_parameters": {**LLAMA3, "factor": 32.0},
        "tie_word_embeddings": True,
    },
    "llama_biases": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 6,
        "num_key_value_heads": 1,
    },
    "llama_linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0},
    },
    "llama_dynamic": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 100.0},
        "max_position_embeddings": 10,
        "head_dim": 8,
    },
    "llama_yarn": {
        "model_type": "llama",
        "rope_parameters": {
            **YARN,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
            "mscale": 0.7,
            "mscale_all_dim": 1.2,
            "truncate": False,
        },
        "head_dim": 12,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 6},
    "mistral_full": {"model_type": "mistral", "sliding_window": None, "head_dim": 8},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_windows": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen2_5": {"model_type": "qwen2", "rope_parameters": YARN, "head_dim": 8},
    "qwen3": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "qwen3_layer_types": {
        "model_type": "qwen3",
        "head_dim": 6,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {**YARN, "attention_factor": 1.3},
    },
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 4},
    "smollm3_windows": {
        "model_type": "smollm3",
        "no_rope_layers": [0, 1, 0],
        "use_sliding_window": True,
        "sliding_window": 7,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name and shape: waves that no two tensors share."""
    size = int(np.prod(shape))
    steps = 1 + zlib.crc32(name.encode()) / 2**32
    wave = np.sin(steps * (1 + np.arange(size)) ** 1.5)
    centre, spread = (1.0, 0.2) if "norm" in name else (0.0, 0.4)
    return np.asarray(centre + spread * wave, np.float32).reshape(shape)


def tokens() -> np.ndarray:
    """Two sequences of token ids (2, LENGTH)."""
    steps = 7 * np.arange(2 * LENGTH).reshape(2, LENGTH) + np.array([[3], [10]])
    return np.asarray(steps % 29 + 3)


def mask() -> np.ndarray:
    """Which of them are no padding, where the second is padded on the left."""
    return np.asarray(np.arange(LENGTH) >= np.array([[0], [PADDING]]))


def sample(array: np.ndarray) -> list[float]:
    """Some numbers of an array, in seven digits."""
    return [float(f"{number:.7g}") for number in np.ravel(array)[::STRIDE]]


def golden(case: str) -> dict[str, Any]:
    """The file of a case."""
    found: dict[str, Any] = json.loads((DATA / f"{case}.json").read_text())
    return found


def tensors(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, without a head that is tied."""
    return {name: weight(name, tuple(shape)) for name, shape in shapes.items()}


def write(folder: Path, config: dict[str, Any], shapes: dict[str, Any]) -> Path:
    """A folder with a checkpoint."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(shapes), folder / "model.safetensors")
    return folder


def load(case: str, folder: Path, **options: Any) -> Llama:
    """The model of a case."""
    found = golden(case)
    model: Llama = load_model(write(folder, found["config"], found["shapes"]), **options)
    return model
