"""Whether CuPy, which can be installed anywhere, has a GPU to compute on."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any


@cache
def why_no_gpu() -> str | None:
    """Say in one line why CuPy, which is imported, cannot compute; None if it can."""
    cupy: Any = sys.modules["cupy"]
    try:
        if cupy.cuda.runtime.getDeviceCount() > 0:
            return None
        reason = "no device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        reason = " ".join(str(error).split())
    return f"CuPy {cupy.__version__} finds no GPU ({reason}): it needs one, and an NVIDIA driver"
