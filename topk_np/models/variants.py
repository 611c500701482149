"""Parts that only some models have: norms of queries and keys, and a bias of the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from topk_np import MultiheadGrads, MultiheadWeights
from topk_np._namespace import Array, array_namespace
from topk_np.layers import feed_forward_bwd, rms_norm_bwd, rms_norm_fwd
from topk_np.layers.projections import Projections
from topk_np.layers.rope import Rotation
from topk_np.models.model import Params

NORMS = ("query_norm", "key_norm")


class NormedWeights(NamedTuple):
    """Gradients of the weights of attention whose queries and keys have norms, by name."""

    query: Array | None
    key: Array | None
    value: Array | None
    out: Array | None
    query_bias: Array | None
    key_bias: Array | None
    value_bias: Array | None
    out_bias: Array | None
    query_norm: Array
    key_norm: Array


@dataclass(frozen=True, eq=False)
class NormedProjections(Projections):
    """Projections to queries and keys that are normalised head by head, and then turned."""

    rotation: Rotation | None
    query_norm: Any
    key_norm: Any

    def project_bwd(self, dquery: Array, dkey: Array, dvalue: Array) -> MultiheadGrads:
        """Gradients of `projected`; those of the last projection are None."""
        # 3
        if self.rotation is not None:
            dquery, dkey = self.rotation.turn_back(dquery), self.rotation.turn_back(dkey)
        # 2
        query = rms_norm_bwd(self.query_norm, dquery)
        key = rms_norm_bwd(self.key_norm, dkey)
        # 1
        made = super().project_bwd(query.x, key.x, dvalue)
        weights: Any = NormedWeights(*made.weights, query.weight, key.weight)
        return made._replace(weights=weights)


def projected(
    x: Array,
    params: Params,
    context: Array | None,
    heads: int,
    groups: int,
    rotation: Rotation | None,
    norm_eps: float,
) -> tuple[Projections, tuple[Array, Array, Array]]:
    """Query (..., G, H/G, Q, W), key (..., G, 1, N, W) and value, and their inputs."""
    weights = MultiheadWeights(
        **{name: array for name, array in params.items() if name not in NORMS}
    )
    if NORMS[0] not in params:
        inputs = Projections(x, weights, context, heads, groups, rotation, rotation)
        return inputs, inputs.project()
    # 1 query, key, value = projections of x, split into heads
    # 2 query, key = norms of these
    # 3 query, key = turned by position
    plain = Projections(x, weights, context, heads, groups, None, None)
    query, key, value = plain.project()
    query, query_norm = rms_norm_fwd(query, params["query_norm"], eps=norm_eps)
    key, key_norm = rms_norm_fwd(key, params["key_norm"], eps=norm_eps)
    if rotation is not None:
        query, key = rotation.turn(query), rotation.turn(key)
    inputs = NormedProjections(
        x, weights, context, heads, groups, None, None, rotation, query_norm, key_norm
    )
    return inputs, (query, key, value)


class GateBiased(NamedTuple):
    """Residuals of a feed-forward layer whose gate has a bias."""

    part: Any


def with_gate_bias(x: Array, params: Params) -> tuple[Array, Params]:
    """Move the bias of a gate into the gate: ``gate x + bias`` is ``[gate, bias] [x, 1]``."""
    xp, params = array_namespace(x), dict(params)
    bias = params.pop("gate_bias")[:, None]
    params["gate"] = xp.concat([params["gate"], bias], axis=-1)
    params["keys"] = xp.concat([params["keys"], xp.zeros_like(bias)], axis=-1)
    return xp.concat([x, xp.ones_like(x[..., :1])], axis=-1), params


def ffn_bwd(residuals: Any, dout: Array) -> tuple[Array, Params]:
    """Gradients of a feed-forward layer: of x, and of its parameters by name."""
    if not isinstance(residuals, GateBiased):
        return feed_forward_bwd(residuals, dout)
    dx, params = feed_forward_bwd(residuals.part, dout)
    params["gate_bias"] = params["gate"][:, -1]
    params["gate"], params["keys"] = params["gate"][:, :-1], params["keys"][:, :-1]
    return dx[..., :-1], params
