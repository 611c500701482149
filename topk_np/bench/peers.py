"""The peers, ways to compute a case: this library, NumPy, PyTorch, the scores' product alone."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import topk_np
from topk_np._namespace import Array
from topk_np.baselines import performer, rfa
from topk_np.bench import step
from topk_np.bench.cases import ATTENTION, BOTH, FORWARD, KINDS, MODES, STEP, Case, Inputs, Runs
from topk_np.kernels import numpy as kernels
from topk_np.schedule.threads import WorkerTeam, available_cores

DENSE_CHUNK = 1024
GEMM_QUERIES, GEMM_KEYS = 256, 4096


@dataclass(frozen=True)
class Peer:
    """One way to compute a case."""

    name: str
    what: str
    build: Callable[[Case, Inputs], Runs]
    quadratic: bool = False
    """Whether memory grows with the number of scores, not with length."""
    linear: bool = False
    """Whether time grows with length, not with the number of scores."""
    kinds: tuple[str, ...] = KINDS
    modes: tuple[str, ...] = MODES
    needs: str | None = None
    """A package beyond what topk_np installs."""

    @property
    def installed(self) -> bool:
        """True if it can run here."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None

    def does(self, case: Case, mode: str) -> bool:
        """True if it computes such a case."""
        return case.kind in self.kinds and mode in self.modes


def _runs(
    function: Callable[..., Any],
    fwd: Callable[..., Any],
    bwd: Callable[..., Any],
    arrays: Sequence[Array],
    /,
    **options: Any,
) -> Runs:
    """A function of this library forward, and with its backward pass; the last array is dout."""
    *inputs, dout = arrays

    def both() -> tuple[Array, ...]:
        out, kept = fwd(*inputs, **options)
        return out, *bwd(kept, dout)[:3]

    return Runs(lambda: function(*inputs, **options), both)


def _topk(case: Case, inputs: Inputs) -> Runs:
    if case.kind == ATTENTION:
        return _runs(
            topk_np.topk_attention,
            topk_np.topk_attention_fwd,
            topk_np.topk_attention_bwd,
            inputs,
            k=case.k,
            is_causal=case.causal,
        )
    arrays = [array[0] for array in inputs]
    return _runs(topk_np.topk_ffn, topk_np.topk_ffn_fwd, topk_np.topk_ffn_bwd, arrays, k=case.k)


def _chunked(case: Case, inputs: Inputs) -> Runs:
    """The paper's query chunking: dense and exact, the backward pass recomputes."""
    if case.kind == ATTENTION:
        return _runs(
            topk_np.dense_attention,
            topk_np.dense_attention_fwd,
            topk_np.dense_attention_bwd,
            inputs,
            is_causal=case.causal,
            chunk_size=DENSE_CHUNK,
        )
    return _runs(
        topk_np.dense_ffn,
        topk_np.dense_ffn_fwd,
        topk_np.dense_ffn_bwd,
        [array[0] for array in inputs],
        chunk_size=DENSE_CHUNK,
    )


def _performer(case: Case, inputs: Inputs) -> Runs:
    return _runs(
        performer.performer_attention,
        performer.performer_attention_fwd,
        performer.performer_attention_bwd,
        inputs,
        is_causal=case.causal,
    )


def _rfa(case: Case, inputs: Inputs) -> Runs:
    trio = rfa.rfa_attention, rfa.rfa_attention_fwd, rfa.rfa_attention_bwd
    return _runs(*trio, inputs, is_causal=case.causal)


def _plain(case: Case, inputs: Inputs) -> Runs:
    """The textbook on NumPy: all scores at once, with all threads of BLAS."""
    query, key, value, dout = inputs
    softmax = case.kind == ATTENTION

    def forward_weights() -> tuple[Array, Array]:
        weights = query @ key.swapaxes(1, 2)
        if softmax:
            weights *= case.scale
            if case.causal:
                weights[:, np.triu(np.ones(weights.shape[1:], bool), 1)] = -np.inf
            weights -= weights.max(axis=2, keepdims=True)
            np.exp(weights, out=weights)
            weights /= weights.sum(axis=2, keepdims=True)
        else:
            np.maximum(weights, 0, out=weights)
        return weights @ value, weights

    def both() -> tuple[Array, ...]:
        out, weights = forward_weights()
        dvalue = weights.swapaxes(1, 2) @ dout
        dscores = dout @ value.swapaxes(1, 2)
        if softmax:
            dscores -= np.einsum("hqv,hqv->hq", out, dout)[:, :, None]
            dscores *= weights
            dscores *= case.scale
        else:
            dscores *= weights > 0
        return out, dscores @ key, dscores.swapaxes(1, 2) @ query, dvalue

    return Runs(lambda: forward_weights()[0], both)


def _gemm(case: Case, inputs: Inputs) -> Runs:
    """
    The scores and nothing else, block by block into the same scratch, on all cores.

    Returns the last score of each block. No top-k that computes all scores can be faster.
    """
    query, key = inputs.query, inputs.key

    def forward() -> list[float]:
        with WorkerTeam(available_cores()) as crew:

            def work(block: tuple[int, int]) -> float:
                head, first = block
                rows = query[head, first : first + GEMM_QUERIES]
                seen = first + len(rows) if case.causal else case.keys
                for start in range(0, seen, GEMM_KEYS):
                    keys = key[head, start : min(start + GEMM_KEYS, seen)]
                    given = rows[None], keys[None], 1.0
                    scores = kernels.product(*given, crew.scratch, "scores")
                return float(scores[0, -1, -1])

            starts = range(0, case.queries, GEMM_QUERIES)
            return crew.map(work, [(head, first) for head in range(case.heads) for first in starts])

    return Runs(forward)


def _torch(name: str) -> Callable[[Case, Inputs], Runs]:
    """The builder of that name from the module that imports PyTorch."""

    def build(case: Case, inputs: Inputs) -> Runs:
        builder = getattr(importlib.import_module("topk_np.bench.torch_peers"), name)
        runs: Runs = builder(case, inputs)
        return runs

    return build


OURS, NUMPY, CHUNKED, GEMM = "topk_np", "numpy", "numpy-chunked", "gemm"
PERFORMER, RFA = "performer", "rfa"
SDPA, TORCH, PAPER, GATHER = "torch-sdpa", "torch", "torch-paper", "torch-gather"
STEP_TOPK, STEP_DENSE, STEP_TORCH = "step-topk", "step-dense", "step-torch"

PEERS = {
    peer.name: peer
    for peer in (
        Peer(OURS, "top-k, this library", _topk),
        Peer(NUMPY, "dense, NumPy with BLAS threads", _plain, quadratic=True),
        Peer(CHUNKED, f"dense in chunks of {DENSE_CHUNK:,} queries, this library", _chunked),
        Peer(
            PERFORMER,
            f"an estimate of dense: {performer.FEATURES} positive features, this library",
            _performer,
            linear=True,
            kinds=(ATTENTION,),
        ),
        Peer(
            RFA,
            f"an estimate of dense: {rfa.FEATURES} sines and as many cosines, this library",
            _rfa,
            linear=True,
            kinds=(ATTENTION,),
        ),
        Peer(
            SDPA,
            "dense, PyTorch's scaled_dot_product_attention",
            _torch("sdpa"),
            kinds=(ATTENTION,),
            needs="torch",
        ),
        Peer(TORCH, "dense, PyTorch written out", _torch("dense"), quadratic=True, needs="torch"),
        Peer(
            PAPER,
            "top-k, the paper's algorithm in PyTorch: torch.topk and dense scatter",
            _torch("paper"),
            needs="torch",
        ),
        Peer(GATHER, "top-k, torch.topk and gather", _torch("gather"), needs="torch"),
        Peer(GEMM, "the matrix product of the scores alone", _gemm, modes=(FORWARD,)),
        Peer(
            STEP_TOPK,
            "a training step with top-k attention, this library",
            step.topk,
            kinds=(STEP,),
            modes=(BOTH,),
        ),
        Peer(
            STEP_DENSE,
            "a training step with dense attention, this library",
            step.dense,
            kinds=(STEP,),
            modes=(BOTH,),
        ),
        Peer(
            STEP_TORCH,
            "a training step in PyTorch's modules",
            _torch("step"),
            kinds=(STEP,),
            modes=(BOTH,),
            needs="torch",
        ),
    )
}
