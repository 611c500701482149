"""
The CuPy engine, but for gradients that are summed by atomic additions.

Nothing is sorted, which is quicker, but the order of the terms and so the rounding of the sums
varies from run to run.
"""

from topk_np.kernels.cupy import (
    Finds,
    add_slots,
    floor_of,
    gather_matmul,
    hide,
    hide_outside,
    masked_matmul,
    matmul,
    sampled_matmul,
    select,
    select_above,
    softmax,
    softmax_vjp,
    take_slots,
    tanh,
    threefry,
)
from topk_np.kernels.cupy import scatter_matmul_atomic as scatter_matmul

__all__ = [
    "Finds",
    "add_slots",
    "floor_of",
    "gather_matmul",
    "hide",
    "hide_outside",
    "masked_matmul",
    "matmul",
    "sampled_matmul",
    "scatter_matmul",
    "select",
    "select_above",
    "softmax",
    "softmax_vjp",
    "take_slots",
    "tanh",
    "threefry",
]
