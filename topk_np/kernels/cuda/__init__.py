"""
The CUDA C++ source of the kernels, readable without CuPy: `topk_np.kernels.cupy` launches them.

Each file is named after the primitives it implements. All are compiled as one module.
"""

from __future__ import annotations

from importlib.resources import files

FILES = ("common.cuh", "hide.cu", "select.cu", "products.cu", "softmax.cu")

OPTIONS = ("--std=c++17",)
"""Options of the compiler, NVRTC."""

COMPUTED = {"float32": "float", "float64": "double"}
"""Formats that are computed in, and what they are called in C++."""

STORED = {"float16": "Float16", "bfloat16": "BFloat16", **COMPUTED}
"""Formats that values may be stored in. Half precision is computed with as float32."""

_BITS = {
    1: "unsigned char",
    2: "unsigned short",
    4: "unsigned int",
    8: "unsigned long long",
}


def source() -> str:
    """The whole module's source."""
    folder = files(__name__)
    texts = (f'#line 1 "{name}"\n{folder.joinpath(name).read_text()}' for name in FILES)
    return "\n".join(texts)


def instance(kernel: str, *dtypes: str) -> str:
    """The C++ name of a kernel for these formats, such as ``gather_matmul<float, Float16>``."""
    return f"{kernel}<{', '.join(STORED[dtype] for dtype in dtypes)}>"


def instance_for_bits(kernel: str, size: int) -> str:
    """The C++ name of a kernel that moves elements of `size` bytes, whatever they are."""
    return f"{kernel}<{_BITS[size]}>"


def instances() -> tuple[str, ...]:
    """The C++ names of all kernels that are ever launched."""
    products = ("gather_matmul", "sampled_matmul")
    one_format = (
        "add_slots",
        "hide_outside",
        "masked_matmul",
        "scatter_matmul",
        "scatter_matmul_atomic",
        "softmax",
        "softmax_vjp",
    )
    operands = [(dtype, dtype) for dtype in COMPUTED]
    operands += [("float32", dtype) for dtype in STORED if dtype not in COMPUTED]
    return (
        *(instance("select", dtype) for dtype in STORED),
        *(instance(name, *pair) for name in products for pair in operands),
        *(instance(name, dtype) for name in one_format for dtype in COMPUTED),
        *(instance_for_bits("take_slots", size) for size in _BITS),
    )
