"""
Measurements and pictures of what top-k attention keeps of dense attention.

Nothing of size Q x N is made. Dropout is ignored everywhere: what is measured and drawn are the
softmax's weights, as they are at inference.
"""

from topk_np.diagnostics.bound import error_bound
from topk_np.diagnostics.mass import kept_mass, keys_for_mass
from topk_np.diagnostics.matrix import attention_csr
from topk_np.diagnostics.overlap import recall
from topk_np.diagnostics.plots import plot_attention, plot_mass

__all__ = [
    "attention_csr",
    "error_bound",
    "kept_mass",
    "keys_for_mass",
    "plot_attention",
    "plot_mass",
    "recall",
]
