"""Configuration of transformer blocks, and their parameters: made, and checked by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from topk_np._namespace import check_choice, check_number
from topk_np.layers.attention_kinds import check_kind
from topk_np.layers.linear import glorot
from topk_np.layers.norms import NORMS, init_norm
from topk_np.layers.projections import MultiheadWeights

PROJECTIONS = ("query", "key", "value", "out")


@dataclass(frozen=True)
class BlockConfig:
    """
    Configuration of a block: attention, norms, dropout, and recomputation in the backward pass.

    Parameters
    ----------
    heads : int, default 4
        Number of attention heads.
    attention : {"dense", "chunked", "topk", "performer", "rfa"}
        The kind of attention.
    k : int, default 16
        Number of keys kept for each query, in top-k attention.
    ffn_k : int, optional
        Number of feed-forward units kept for each token; by default all.
    features, seed : int
        Number of random features of a head in Performer and RFA, and the seed to draw them from.
    chunk_size : int, default 64
        Number of queries at a time in chunked attention.
    recompute : bool, default False
        If True, only the inputs of a block are kept, and the backward pass recomputes the rest.
    norm : {"layer", "rms"}
        Layer norm or RMS norm.
    norm_first : bool, default True
        If True pre-norm, ``x + f(norm(x))`` for each part f of the block; if False post-norm,
        ``norm(x + f(x))``.
    dropout : float, default 0
        Probability of dropping an entry of the output of a part, before it is added to x.
    attention_options, cross_options, ffn_options : mapping
        Further options of self-attention and of attention to a context, such as `rope`, `window`
        and `memory_budget`, and of the feed-forward layer, such as `activation`.

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
        """The options of multi-head attention for this kind of attention."""
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
        Make parameters of a block to start training from.

        Parameters
        ----------
        rng : numpy.random.Generator
            The generator that the matrices are drawn from.
        width : int
            Number of features of a token.
        hidden : int
            Number of units of the feed-forward layer.
        context_width : int, optional
            Number of features of a row of the context, for a decoder block; by default the
            parameters are those of an encoder block.
        gated : bool, default False
            If True, feed-forward units have a gate.

        Returns
        -------
        nested dict of arrays
            In float32: matrices drawn as by Glorot and Bengio 2010, biases 0, weights of norms 1.

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


def check_block(params: Mapping[str, Any], config: BlockConfig, parts: Sequence[str], /) -> None:
    """Check that `config` is one, and that each part and its norm have their parameters."""
    if not isinstance(config, BlockConfig):
        raise TypeError(f"config must be a BlockConfig, got {type(config).__name__}")
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a dict of arrays, got {type(params).__name__}")
    wanted = [name for part in parts for name in (f"{part}_norm", part)]
    if sorted(params) != sorted(wanted):
        raise ValueError(
            f"params must have {', '.join(map(repr, wanted))}, "
            f"got {', '.join(map(repr, params)) or 'none'}"
        )
    for part in parts:
        norm = tuple(init_norm(config.norm, 0))
        _check_names(f"{part}_norm", params[f"{part}_norm"], norm)
        if part != "ffn":
            _check_names(part, params[part], PROJECTIONS, MultiheadWeights._fields)


def _check_names(
    part: str, params: Mapping[str, Any], needed: Sequence[str], known: Sequence[str] | None = None
) -> None:
    """Check the names of the parameters of a part: all that are needed, none that is not known."""
    known = needed if known is None else known
    if not set(needed) <= set(params) <= set(known):
        raise ValueError(
            f"params[{part!r}] must have {', '.join(map(repr, needed))}"
            f"{'' if known == needed else ', and may have their biases'}, "
            f"got {', '.join(map(repr, params)) or 'none'}"
        )
