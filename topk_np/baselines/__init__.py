"""
The linear-memory methods that top-k attention is compared with.

Both estimate softmax attention with random features, so that keys can be summed up before any query
is looked at; top-k attention is exact for the keys that it keeps.
"""

from topk_np.baselines.features import draw_projection
from topk_np.baselines.performer import (
    PerformerGrads,
    performer_attention,
    performer_attention_bwd,
    performer_attention_fwd,
)
from topk_np.baselines.rfa import RFAGrads, rfa_attention, rfa_attention_bwd, rfa_attention_fwd

__all__ = [
    "PerformerGrads",
    "RFAGrads",
    "draw_projection",
    "performer_attention",
    "performer_attention_bwd",
    "performer_attention_fwd",
    "rfa_attention",
    "rfa_attention_bwd",
    "rfa_attention_fwd",
]
