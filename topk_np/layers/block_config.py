"""How a transformer block computes: all but its parameters and its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from topk_np._namespace import check_choice, check_number
from topk_np.layers.attention_kinds import check_kind
from topk_np.layers.linear import glorot
from topk_np.layers.norms import NORMS, init_norm

PROJECTIONS = ("query", "key", "value", "out")


@dataclass(frozen=True)
class BlockConfig:
    """
    How a block attends, normalises and drops out, and what it keeps for the backward pass.

    Parameters
    ----------
    heads : int, default 4
        Heads of attention.
    attention : {"dense", "chunked", "topk", "performer", "rfa"}
        How they attend.
    k : int, default 16
        Keys kept for each query, in top-k attention.
    ffn_k : int, optional
        Feed-forward units kept for each token; by default all.
    features, seed : int
        Random features of a head in Performer and RFA, and what they are drawn from.
    chunk_size : int, default 64
        Queries at once in chunked attention.
    recompute : bool, default False
        Whether the backward pass makes a block's activations again instead of keeping them.
    norm : {"layer", "rms"}
        Layer norm or RMS norm.
    norm_first : bool, default True
        Pre-norm, ``x + f(norm(x))`` for each part f of the block; else post-norm,
        ``norm(x + f(x))``.
    dropout : float, default 0
        The probability that an entry of what a part gives is dropped, before it is added to x.
    attention_options, cross_options, ffn_options : mapping
        Further options of self-attention and of attention to a context, such as `rope`, `window` or
        `memory_budget`, and of the feed-forward layer, such as `activation`.

    Raises
    ------
    TypeError
        If `dropout` is not a number, or a name is not a string.
    ValueError
        If a name is unknown, or `dropout` is out of its range.
    """

    heads: int = 4
    attention: str = "dense"
    k: int = 16
    ffn_k: int | None = None
    features: int = 64
    seed: int = 0
    chunk_size: int = 64
    recompute: bool = False
    norm: str = "layer"
    norm_first: bool = True
    dropout: float = 0.0
    attention_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    cross_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    ffn_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check names and the rate of dropout; layers check the rest."""
        check_kind(self.attention)
        check_choice("norm", self.norm, NORMS)
        if not 0 <= check_number("dropout", self.dropout) < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    @property
    def way(self) -> dict[str, Any]:
        """The options of multi-head attention that say how it attends."""
        own: dict[str, Any] = {
            "dense": {},
            "chunked": {"chunk_size": self.chunk_size},
            "topk": {"k": self.k},
        }.get(self.attention, {"features": self.features, "seed": self.seed})
        return {"heads": self.heads, "attention": self.attention, **own}

    def init(
        self,
        rng: np.random.Generator,
        /,
        *,
        width: int,
        hidden: int,
        context_width: int | None = None,
        gated: bool = False,
    ) -> dict[str, Any]:
        """
        Parameters of a block to start from.

        Parameters
        ----------
        rng : numpy.random.Generator
            What they are drawn from.
        width : int
            Features of a token.
        hidden : int
            Units of the feed-forward layer.
        context_width : int, optional
            Features of a row of the context that a decoder block attends to; without it these are
            the parameters of an encoder block.
        gated : bool, default False
            Whether feed-forward units have a gate.

        Returns
        -------
        nested dict of arrays
            float32: matrices as Glorot and Bengio 2010, biases 0, weights of norms 1.

        Examples
        --------
        >>> import numpy as np
        >>> from topk_np.layers import BlockConfig
        >>> params = BlockConfig().init(np.random.default_rng(0), width=8, hidden=16)
        >>> list(params), params["ffn"]["keys"].shape
        (['attention_norm', 'attention', 'ffn_norm', 'ffn'], (16, 8))
        """

        def zeros(length: int) -> np.ndarray:
            return np.zeros(length, np.float32)

        def attention(source: int) -> dict[str, np.ndarray]:
            columns = dict.fromkeys(PROJECTIONS, width) | {"key": source, "value": source}
            return {name: glorot(rng, width, columns[name]) for name in PROJECTIONS} | {
                f"{name}_bias": zeros(width) for name in PROJECTIONS
            }

        params = {"attention_norm": init_norm(self.norm, width), "attention": attention(width)}
        if context_width is not None:
            params |= {"cross_norm": init_norm(self.norm, width), "cross": attention(context_width)}
        ffn = {
            "keys": glorot(rng, hidden, width),
            "values": glorot(rng, hidden, width),
            "key_bias": zeros(hidden),
            "value_bias": zeros(width),
        }
        if gated:
            ffn["gate"] = glorot(rng, hidden, width)
        return {**params, "ffn_norm": init_norm(self.norm, width), "ffn": ffn}
