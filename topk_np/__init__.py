"""Memory-efficient top-k attention on arrays, forward and backward, for NumPy and CuPy."""

from topk_np._namespace import array_namespace
from topk_np._vjp import vjp
from topk_np.attention import (
    AttentionGrads,
    dense_attention,
    dense_attention_bwd,
    dense_attention_fwd,
    topk_attention,
    topk_attention_bwd,
    topk_attention_fwd,
)
from topk_np.decoding import KVCache
from topk_np.ffn import (
    FFNGrads,
    dense_ffn,
    dense_ffn_bwd,
    dense_ffn_fwd,
    topk_ffn,
    topk_ffn_bwd,
    topk_ffn_fwd,
)
from topk_np.layers.multihead import (
    multihead_attention,
    multihead_attention_bwd,
    multihead_attention_fwd,
)
from topk_np.layers.projections import MultiheadGrads, MultiheadWeights, merge_heads, split_heads
from topk_np.layers.rope import Rope, rotary_embedding, rotary_embedding_bwd
from topk_np.options.relative import ALiBi, T5Bias
from topk_np.planning import Plan, plan
from topk_np.selection import TopK, top_k

__version__ = "0.1.0"

__all__ = [
    "ALiBi",
    "AttentionGrads",
    "FFNGrads",
    "KVCache",
    "MultiheadGrads",
    "MultiheadWeights",
    "Plan",
    "Rope",
    "T5Bias",
    "TopK",
    "array_namespace",
    "dense_attention",
    "dense_attention_bwd",
    "dense_attention_fwd",
    "dense_ffn",
    "dense_ffn_bwd",
    "dense_ffn_fwd",
    "merge_heads",
    "multihead_attention",
    "multihead_attention_bwd",
    "multihead_attention_fwd",
    "plan",
    "rotary_embedding",
    "rotary_embedding_bwd",
    "split_heads",
    "top_k",
    "topk_attention",
    "topk_attention_bwd",
    "topk_attention_fwd",
    "topk_ffn",
    "topk_ffn_bwd",
    "topk_ffn_fwd",
    "vjp",
]
