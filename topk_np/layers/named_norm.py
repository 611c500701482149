"""Layer norm or RMS norm, as is chosen by name, with parameters by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.layers.layer_norm import LayerNormGrads, layer_norm_bwd, layer_norm_fwd
from topk_np.layers.rms_norm import RMSNormGrads, RMSNormResiduals, rms_norm_bwd, rms_norm_fwd

NORMS = ("layer", "rms")


def init_norm(norm: str, width: int) -> dict[str, np.ndarray]:
    """A weight of ones, and a layer norm's bias of zeros, in float32."""
    weight = {"weight": np.ones(width, np.float32)}
    return weight if norm == "rms" else weight | {"bias": np.zeros(width, np.float32)}


def norm_fwd(norm: str, x: Array, params: Mapping[str, Array]) -> tuple[Array, Any]:
    """The norm of rows (..., D), and what `norm_bwd` needs."""
    if norm == "rms":
        return rms_norm_fwd(x, params["weight"])
    return layer_norm_fwd(x, params["weight"], params["bias"])


def norm_bwd(residuals: Any, dout: Array) -> tuple[Array, dict[str, Array]]:
    """Gradients of `norm_fwd`: of x, and of the parameters by their names."""
    rms = isinstance(residuals, RMSNormResiduals)
    backward: Any = rms_norm_bwd if rms else layer_norm_bwd
    grads: RMSNormGrads | LayerNormGrads = backward(residuals, dout)
    named = grads._asdict()
    return named.pop("x"), named
