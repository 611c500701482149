"""
Top-k attention over Dask arrays, in blocks of queries and of keys: on many cores or many machines.

Needs the extra ``dask``; `import topk_np` does not import this package.
"""

try:
    import dask.array  # noqa: F401
except ImportError as error:
    raise ImportError("topk_np.dask needs Dask: pip install 'topk_np[dask]'") from error

from topk_np.dask.attention import (
    AttentionGrads,
    Residuals,
    topk_attention,
    topk_attention_bwd,
    topk_attention_fwd,
)

__all__ = [
    "AttentionGrads",
    "Residuals",
    "topk_attention",
    "topk_attention_bwd",
    "topk_attention_fwd",
]
