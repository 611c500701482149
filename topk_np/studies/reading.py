"""A language model reads: what it sees layer by layer, and how well it foresees the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from topk_np._namespace import Array
from topk_np.diagnostics import kept_mass
from topk_np.models.llama import causal_attention, forward
from topk_np.models.llama_blocks import Llama, check_ks
from topk_np.models.scoring import NextTokens, next_tokens

Watch = Callable[[Array, Array, Array], object]
"""Called in each layer, first layer first, with query, key and value, as `forward` says."""


def read(model: Llama, tokens: np.ndarray, watch: Watch, /) -> NextTokens:
    """How well each of (Q,) tokens but the first is foreseen, while somebody watches."""
    ks = iter([k for k, _ in check_ks(model)])

    def attention(query: Array, key: Array, value: Array) -> Array:
        watch(query, key, value)
        return causal_attention(query, key, value, k=next(ks))

    hidden = forward(replace(model, attention_k=None), tokens, attention=attention)
    return next_tokens(model, hidden, tokens)


def mass_of_layer(query: Array, key: Array, ks: Sequence[int], /) -> np.ndarray:
    """(len(ks),): the share of dense causal softmax mass each k keeps, of all heads and queries."""
    mass = kept_mass(query, key, k=list(ks), is_causal=True)
    return np.asarray(np.mean(mass, axis=tuple(range(1, mass.ndim))))
