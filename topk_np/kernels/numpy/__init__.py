"""
The primitives on NumPy and scipy.sparse. Definitions: `topk_np.kernels.portable`.

Heads lie one below the other: a stack (G, C, n) is worked on as the rows of one matrix (G C, n).
"""

from topk_np.kernels.numpy.products import (
    add_slots,
    gather_matmul,
    pattern,
    product,
    sampled_matmul,
    scatter_matmul,
)
from topk_np.kernels.numpy.rowwise import (
    erf,
    hide,
    hide_outside,
    relu,
    relu_vjp,
    softmax,
    softmax_vjp,
    take_slots,
    tanh,
    toeplitz,
    zero_hidden,
)
from topk_np.kernels.numpy.running import RunningTopK
from topk_np.kernels.numpy.select import select
from topk_np.kernels.portable import masked_matmul
from topk_np.kernels.threefry import threefry

THREADS = True
MAY_WAIT = True
WHOLE_BUDGET = False
DOUBLE = True

__all__ = [
    "DOUBLE",
    "MAY_WAIT",
    "THREADS",
    "WHOLE_BUDGET",
    "RunningTopK",
    "add_slots",
    "erf",
    "gather_matmul",
    "hide",
    "hide_outside",
    "masked_matmul",
    "pattern",
    "product",
    "relu",
    "relu_vjp",
    "sampled_matmul",
    "scatter_matmul",
    "select",
    "softmax",
    "softmax_vjp",
    "take_slots",
    "tanh",
    "threefry",
    "toeplitz",
    "zero_hidden",
]
