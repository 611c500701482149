"""
A transformer that tells the class of a sequence of tokens, or of a pair of them.

Embeddings of tokens and positions, encoder blocks, a last norm, the mean over the
sequence, and a linear layer. Of a pair both sequences are encoded alike, to u and v; what is
classified is (u, v, u v, u - v), as in the Long Range Arena.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from topk_np._namespace import Array, array_namespace
from topk_np.layers import (
    BlockConfig,
    embedding_bwd,
    embedding_fwd,
    encoder_block_bwd,
    encoder_block_fwd,
    fold_seed,
    linear_bwd,
    linear_fwd,
    pool_bwd,
    pool_fwd,
)
from topk_np.layers.linear import glorot
from topk_np.layers.norms import init_norm, norm_bwd, norm_fwd
from topk_np.training.trees import Tree


@dataclass(frozen=True)
class Classifier:
    """The sizes of a classifier."""

    vocabulary: int
    """Tokens are below this number."""
    classes: int
    length: int
    """Tokens of the longest sequence."""
    pairs: bool = False
    layers: int = 2
    width: int = 64
    hidden: int = 256
    """Units of a feed-forward layer."""
    block: BlockConfig = field(default_factory=BlockConfig)
    """The options of its blocks."""

    def init(self, rng: np.random.Generator, /) -> dict[str, Any]:
        """Parameters to start from, float32: matrices as Glorot and Bengio 2010, biases 0."""

        def table(rows: int) -> np.ndarray:
            return (rng.standard_normal((rows, self.width)) * 0.1).astype(np.float32)

        return {
            "tokens": table(self.vocabulary),
            "positions": table(self.length),
            "blocks": {
                str(i): self.block.init(rng, width=self.width, hidden=self.hidden)
                for i in range(self.layers)
            },
            "norm": init_norm(self.block.norm, self.width),
            "head": {
                "weight": glorot(rng, self.classes, self.width * (4 if self.pairs else 1)),
                "bias": np.zeros(self.classes, np.float32),
            },
        }


class ClassifierResiduals(NamedTuple):
    """Residuals for `classifier_bwd`: those of each layer."""

    tokens: Any
    positions: Any
    blocks: list[Any]
    norm: Any
    pool: Any
    pooled: Array
    head: Any


def classifier(
    tokens: Array,
    params: Tree,
    model: Classifier,
    /,
    *,
    lengths: Array | None = None,
    dropout_seed: int | None = None,
) -> Array:
    """
    The logits of each class, for sequences of tokens.

    Parameters
    ----------
    tokens : integer array (B, L), or (B, 2, L) for pairs
        Padded at the end; L is at most ``model.length``.
    params : nested dict of arrays
        Such as ``model.init(rng)`` gives.
    model : Classifier
        Its sizes.
    lengths : integer array (B,), or (B, 2) for pairs, optional
        Tokens of each sequence without padding; by default all.
    dropout_seed : int, optional
        The seed of dropout in the blocks; by default nothing is dropped, as when a model is used.

    Returns
    -------
    array (B, classes)
        In the dtype of `params`.

    Raises
    ------
    TypeError, ValueError
        As the layers do.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.layers import BlockConfig
    >>> from topk_np.training import Classifier, classifier
    >>> block = BlockConfig(attention="topk", k=4)
    >>> model = Classifier(vocabulary=10, classes=3, length=8, block=block)
    >>> params = model.init(np.random.default_rng(0))
    >>> classifier(np.array([[1, 2, 3, 0]]), params, model, lengths=np.array([3])).shape
    (1, 3)
    """
    return classifier_fwd(tokens, params, model, lengths=lengths, dropout_seed=dropout_seed)[0]


def classifier_fwd(
    tokens: Array,
    params: Tree,
    model: Classifier,
    /,
    *,
    lengths: Array | None = None,
    dropout_seed: int | None = None,
) -> tuple[Array, ClassifierResiduals]:
    """
    `classifier`, and what its backward pass needs.

    Parameters and errors are those of `classifier`.

    Returns
    -------
    logits : array (B, classes)
        What `classifier` returns.
    residuals : ClassifierResiduals
        Those of all layers.
    """
    # 1 x = token embedding + position embedding
    # 2 x = block(x), for each block
    # 3 pooled = mean over the sequence of norm(x)
    # 4 logits = head of pooled, or of both pooled rows of a pair
    xp, where = array_namespace(tokens), device(tokens)
    places = xp.arange(tokens.shape[-1], dtype=xp.int64, device=where)
    x, token_residuals = embedding_fwd(tokens, params["tokens"])
    rows, position_residuals = embedding_fwd(places, params["positions"])
    x = x + rows
    blocks = []
    for i in range(len(params["blocks"])):  # by number: files have them by name
        block = params["blocks"][str(i)]
        seed = None if dropout_seed is None else fold_seed(dropout_seed, i)
        x, residuals = encoder_block_fwd(x, block, model.block, lengths=lengths, dropout_seed=seed)
        blocks.append(residuals)
    x, norm_residuals = norm_fwd(model.block.norm, x, params["norm"])
    mask = None if lengths is None else places < lengths[..., None]
    pooled, pool_residuals = pool_fwd(x, mask=mask)
    features = _of_pair(pooled) if model.pairs else pooled
    logits, head_residuals = linear_fwd(features, params["head"]["weight"], params["head"]["bias"])
    return logits, ClassifierResiduals(
        token_residuals,
        position_residuals,
        blocks,
        norm_residuals,
        pool_residuals,
        pooled,
        head_residuals,
    )


def classifier_bwd(residuals: ClassifierResiduals, dlogits: Array, /) -> dict[str, Any]:
    """
    Gradients of `classifier` with respect to its parameters.

    Parameters
    ----------
    residuals : ClassifierResiduals
        From `classifier_fwd`.
    dlogits : array (B, classes)
        Gradient of the loss with respect to the logits.

    Returns
    -------
    nested dict of arrays
        With the names and shapes of the parameters.
    """
    # 4
    head = linear_bwd(residuals.head, dlogits)
    pairs = residuals.pooled.ndim == 3
    dpooled = _of_pair_bwd(residuals.pooled, head.x) if pairs else head.x
    # 3
    dx, norm = norm_bwd(residuals.norm, pool_bwd(residuals.pool, dpooled))
    # 2
    blocks = {}
    for i in reversed(range(len(residuals.blocks))):
        dx, blocks[str(i)] = encoder_block_bwd(residuals.blocks[i], dx)
    # 1
    drows = array_namespace(dx).sum(dx, axis=tuple(range(dx.ndim - 2)))
    return {
        "tokens": embedding_bwd(residuals.tokens, dx),
        "positions": embedding_bwd(residuals.positions, drows),
        "blocks": dict(reversed(blocks.items())),
        "norm": norm,
        "head": {"weight": head.weight, "bias": head.bias},
    }


def _of_pair(pooled: Array) -> Array:
    """(B, 4 E): u, v, u v and u - v of pairs (B, 2, E)."""
    u, v = pooled[:, 0, :], pooled[:, 1, :]
    return array_namespace(pooled).concat([u, v, u * v, u - v], axis=1)


def _of_pair_bwd(pooled: Array, dfeatures: Array) -> Array:
    """The gradient of `_of_pair`."""
    xp, width = array_namespace(pooled), pooled.shape[-1]
    du, dv, dproduct, ddifference = (dfeatures[:, i * width : (i + 1) * width] for i in range(4))
    u, v = pooled[:, 0, :], pooled[:, 1, :]
    return xp.stack([du + dproduct * v + ddifference, dv + dproduct * u - ddifference], axis=1)
