"""A Llama of transformers and PyTorch with the weights of ours, for comparison only."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from topk_np.models import names
from topk_np.models.family import scatter
from topk_np.models.llama import Llama, LlamaConfig, tensor_names
from topk_np.training.trees import flatten

PLAIN = ("heads", "groups", "norm_eps", "rope_base", "rope_layout", "context")


class Transformers:
    """
    The same model, computed by transformers in float32.

    Parameters
    ----------
    model : Llama
        Ours.
    threads : int
        Of PyTorch, in all of the process.

    Raises
    ------
    ValueError
        If the model has more than the first Llama: biases, windows, scaled positions and so on.
    """

    def __init__(self, model: Llama, threads: int) -> None:
        torch.set_num_threads(threads)
        params, config = model.params, model.config
        layers = params["layers"]
        plain = LlamaConfig(*(getattr(config, name) for name in PLAIN))
        if config != plain or flatten(layers["0"]).keys() != names.LLAMA.keys():
            raise ValueError("the model must have no more than the first Llama for this comparison")
        tied = "head" not in params
        self._model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=params["embedding"].shape[0],
                hidden_size=params["embedding"].shape[1],
                intermediate_size=layers["0"]["ffn"]["keys"].shape[0],
                num_hidden_layers=len(layers),
                num_attention_heads=config.heads,
                num_key_value_heads=config.groups,
                head_dim=layers["0"]["attention"]["query"].shape[0] // config.heads,
                max_position_embeddings=config.context,
                rms_norm_eps=config.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
                tie_word_embeddings=tied,
            )
        ).eval()
        tensors = scatter(params, tensor_names([], len(layers), tied=tied))
        if config.rope_layout == "interleaved":
            for name, tensor in tensors.items():
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    query = name.endswith("q_proj.weight")
                    tensors[name] = _halves(tensor, config.heads if query else config.groups)
        if tied:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        self._model.load_state_dict(
            {name: torch.tensor(np.asarray(tensor, np.float32)) for name, tensor in tensors.items()}
        )

    def forward(self, tokens: np.ndarray, /) -> np.ndarray:
        """Hidden states (Q, D) of tokens (Q,), after the last norm."""
        with torch.no_grad():
            found = self._model.model(
                torch.tensor(tokens[None], dtype=torch.int64), use_cache=False
            )
        return np.asarray(found.last_hidden_state[0].numpy())

    def logits(self, tokens: np.ndarray, /) -> np.ndarray:
        """Logits (Q, T) of what follows each of tokens (Q,)."""
        with torch.no_grad():
            found = self._model(torch.tensor(tokens[None], dtype=torch.int64), use_cache=False)
        return np.asarray(found.logits[0].numpy())


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection, from the interleaved to the half-split rotary layout."""
    width = weight.shape[0] // heads
    pairs = weight.reshape(heads, width // 2, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)
