"""Layers of networks and blocks of them, each a function with its backward pass."""

from topk_np.layers.block_config import BlockConfig
from topk_np.layers.blocks import (
    DecoderBlockGrads,
    EncoderBlockGrads,
    decoder_block,
    decoder_block_bwd,
    decoder_block_fwd,
    encoder_block,
    encoder_block_bwd,
    encoder_block_fwd,
    recomputed,
)
from topk_np.layers.cross_entropy import cross_entropy, cross_entropy_bwd, cross_entropy_fwd
from topk_np.layers.dropout import dropout, dropout_bwd, dropout_fwd, fold_seed
from topk_np.layers.embedding import embedding, embedding_bwd, embedding_fwd
from topk_np.layers.feed_forward import (
    FeedForwardGrads,
    feed_forward,
    feed_forward_bwd,
    feed_forward_fwd,
)
from topk_np.layers.linear import LinearGrads, linear, linear_bwd, linear_fwd
from topk_np.layers.norms import (
    LayerNormGrads,
    RMSNormGrads,
    layer_norm,
    layer_norm_bwd,
    layer_norm_fwd,
    rms_norm,
    rms_norm_bwd,
    rms_norm_fwd,
)
from topk_np.layers.pooling import pool, pool_bwd, pool_fwd

__all__ = [
    "BlockConfig",
    "DecoderBlockGrads",
    "EncoderBlockGrads",
    "FeedForwardGrads",
    "LayerNormGrads",
    "LinearGrads",
    "RMSNormGrads",
    "cross_entropy",
    "cross_entropy_bwd",
    "cross_entropy_fwd",
    "decoder_block",
    "decoder_block_bwd",
    "decoder_block_fwd",
    "dropout",
    "dropout_bwd",
    "dropout_fwd",
    "embedding",
    "embedding_bwd",
    "embedding_fwd",
    "encoder_block",
    "encoder_block_bwd",
    "encoder_block_fwd",
    "feed_forward",
    "feed_forward_bwd",
    "feed_forward_fwd",
    "fold_seed",
    "layer_norm",
    "layer_norm_bwd",
    "layer_norm_fwd",
    "linear",
    "linear_bwd",
    "linear_fwd",
    "pool",
    "pool_bwd",
    "pool_fwd",
    "recomputed",
    "rms_norm",
    "rms_norm_bwd",
    "rms_norm_fwd",
]
