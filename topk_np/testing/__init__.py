"""
Verify implementations of attention, top-k and feed-forward layers, your own or somebody else's.

It needs Hypothesis: ``pip install 'topk_np[testing]'``. `docs/howto/verify.md` shows how to use it.
"""

from topk_np.testing.attention import check_attention
from topk_np.testing.close import assert_close
from topk_np.testing.ffn import check_ffn
from topk_np.testing.libraries import CannotCheck, Library
from topk_np.testing.problems import AttentionProblem
from topk_np.testing.report import Report, Result
from topk_np.testing.strategies import attention_problems
from topk_np.testing.topk import check_topk
from topk_np.testing.vjp import check_vjp

__all__ = [
    "AttentionProblem",
    "CannotCheck",
    "Library",
    "Report",
    "Result",
    "assert_close",
    "attention_problems",
    "check_attention",
    "check_ffn",
    "check_topk",
    "check_vjp",
]
