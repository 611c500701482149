"""
A pre-norm encoder block that attends in any of five ways.

    h   = x + attention(norm(x))
    out = h + feed_forward(norm(h))

Xiong et al. 2020, section 3.1, arXiv:2002.04745.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from topk_np._namespace import Array
from topk_np.attention import topk_attention_bwd, topk_attention_fwd
from topk_np.baselines import (
    performer_attention_bwd,
    performer_attention_fwd,
    rfa_attention_bwd,
    rfa_attention_fwd,
)
from topk_np.dense.attention import dense_attention_bwd, dense_attention_fwd
from topk_np.dense.ffn import dense_ffn_bwd, dense_ffn_fwd
from topk_np.ffn import topk_ffn_bwd, topk_ffn_fwd
from topk_np.layers import layer_norm_bwd, layer_norm_fwd, linear_bwd, linear_fwd
from topk_np.layers.heads import merge_heads, split_heads
from topk_np.training.trees import Tree

PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "dense": (dense_attention_fwd, dense_attention_bwd),
    "chunked": (dense_attention_fwd, dense_attention_bwd),
    "topk": (topk_attention_fwd, topk_attention_bwd),
    "performer": (performer_attention_fwd, performer_attention_bwd),
    "rfa": (rfa_attention_fwd, rfa_attention_bwd),
}
"""How to attend, by name: forward and backward."""
PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Encoder:
    """
    How the blocks of an encoder attend, and what they keep.

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
    """

    heads: int = 4
    attention: str = "dense"
    k: int = 16
    ffn_k: int | None = None
    features: int = 64
    seed: int = 0
    chunk_size: int = 64
    recompute: bool = False

    def __post_init__(self) -> None:
        """Check the name."""
        if self.attention not in PAIRS:
            raise ValueError(f"attention must be one of {', '.join(PAIRS)}, got {self.attention!r}")

    def attend(self, *heads: Array, **options: Any) -> tuple[Array, Any]:
        """The forward pass of attention, on query, key and value."""
        own: dict[str, Any] = {
            "dense": {},
            "chunked": {"chunk_size": self.chunk_size},
            "topk": {"k": self.k},
        }.get(self.attention, {"features": self.features, "seed": self.seed})
        forward, _ = PAIRS[self.attention]
        made: tuple[Array, Any] = forward(*heads, **own, **options)
        return made

    def attend_bwd(self, residuals: Any, dout: Array) -> Any:
        """Gradients of `attend`, with the fields query, key and value."""
        _, backward = PAIRS[self.attention]
        return backward(residuals, dout)


class BlockResiduals(NamedTuple):
    """What `encoder_block_bwd` needs: what each layer's backward pass needs, or the input alone."""

    encoder: Encoder
    attention_norm: Any
    projections: list[Any]
    attention: Any
    out: Any
    ffn_norm: Any
    ffn: Any


class Recomputed(NamedTuple):
    """What `encoder_block_bwd` needs where it makes all else again: the arguments."""

    x: Array
    params: Tree
    encoder: Encoder
    lengths: Array | None


def encoder_block_fwd(
    x: Array, params: Tree, encoder: Encoder, /, *, lengths: Array | None = None
) -> tuple[Array, BlockResiduals | Recomputed]:
    """
    A block, and what its backward pass needs.

    Parameters
    ----------
    x : array (..., N, D)
        Rows of sequences.
    params : nested dict of arrays
        "attention_norm" and "ffn_norm" with "weight" and "bias"; "attention" with "query", "key",
        "value" and "out", matrices (out, in), and their biases; "ffn" with "keys", "values",
        "key_bias" and "value_bias".
    encoder : Encoder
        How it attends.
    lengths : integer array (...), optional
        Rows of each sequence that are no padding.

    Returns
    -------
    out : array (..., N, D)
        Rows again.
    residuals
        What `encoder_block_bwd` needs.
    """
    # 1 query, key, value = projections of norm(x)
    # 2 h = x + projection of attention(query, key, value)
    # 3 out = h + ffn(norm(h))
    norm, attention, ffn = params["attention_norm"], params["attention"], params["ffn"]
    rows, norm_residuals = layer_norm_fwd(x, norm["weight"], norm["bias"])
    projected = [linear_fwd(rows, attention[n], attention[f"{n}_bias"]) for n in PROJECTIONS]
    heads = [split_heads(array, encoder.heads) for array, _ in projected]
    own = {} if lengths is None else {"key_lengths": lengths[..., None]}
    attended, attention_residuals = encoder.attend(*heads, **own)
    attended = merge_heads(attended)
    mixed, out_residuals = linear_fwd(attended, attention["out"], attention["out_bias"])
    h = x + mixed
    rows, ffn_norm = layer_norm_fwd(h, params["ffn_norm"]["weight"], params["ffn_norm"]["bias"])
    arrays = rows, ffn["keys"], ffn["values"]
    biases = {name: ffn[name] for name in ("key_bias", "value_bias")}
    ffn_residuals: Any
    if encoder.ffn_k is None:
        made, ffn_residuals = dense_ffn_fwd(*arrays, **biases)
    else:
        made, ffn_residuals = topk_ffn_fwd(*arrays, k=encoder.ffn_k, **biases)
    if encoder.recompute:
        return h + made, Recomputed(x, params, encoder, lengths)
    return h + made, BlockResiduals(
        encoder,
        norm_residuals,
        [residuals for _, residuals in projected],
        attention_residuals,
        out_residuals,
        ffn_norm,
        ffn_residuals,
    )


def encoder_block_bwd(
    residuals: BlockResiduals | Recomputed, dout: Array, /
) -> tuple[Array, dict[str, Any]]:
    """Gradients of a block: of x, and of the parameters by their names."""
    if isinstance(residuals, Recomputed):
        x, params, encoder, lengths = residuals
        keeping = replace(encoder, recompute=False)
        _, residuals = encoder_block_fwd(x, params, keeping, lengths=lengths)
    assert isinstance(residuals, BlockResiduals)
    encoder = residuals.encoder
    # 3
    ffn_bwd: Callable[..., Any] = dense_ffn_bwd if encoder.ffn_k is None else topk_ffn_bwd
    ffn = ffn_bwd(residuals.ffn, dout)
    ffn_norm = layer_norm_bwd(residuals.ffn_norm, ffn.x)
    dh = dout + ffn_norm.x
    # 2
    out = linear_bwd(residuals.out, dh)
    heads = encoder.attend_bwd(residuals.attention, split_heads(out.x, encoder.heads))
    # 1
    grads = {
        name: linear_bwd(projection, merge_heads(getattr(heads, name)))
        for name, projection in zip(PROJECTIONS, residuals.projections, strict=True)
    }
    drows = grads["query"].x + grads["key"].x + grads["value"].x
    norm = layer_norm_bwd(residuals.attention_norm, drows)
    grads["out"] = out
    return dh + norm.x, {
        "attention_norm": {"weight": norm.weight, "bias": norm.bias},
        "attention": {
            **{name: grad.weight for name, grad in grads.items()},
            **{f"{name}_bias": grad.bias for name, grad in grads.items()},
        },
        "ffn_norm": {"weight": ffn_norm.weight, "bias": ffn_norm.bias},
        "ffn": {name: getattr(ffn, name) for name in ("keys", "values", "key_bias", "value_bias")},
    }
