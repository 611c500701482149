"""Every peer computes what the oracle computes, in the same places."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import topk_np
from tests.oracles import assert_close
from topk_np import baselines
from topk_np.bench.cases import (
    ATTENTION,
    BOTH,
    FORWARD,
    Case,
    Inputs,
    Runs,
    attention_case,
    ffn_case,
    make_inputs,
)
from topk_np.bench.peers import (
    GATHER,
    GEMM,
    OURS,
    PAPER,
    PEERS,
    PERFORMER,
    RFA,
    SDPA,
    Peer,
)

TOP_K = {OURS, PAPER, GATHER}
ESTIMATES: dict[str, tuple[Any, Any]] = {
    PERFORMER: (baselines.performer_attention_fwd, baselines.performer_attention_bwd),
    RFA: (baselines.rfa_attention_fwd, baselines.rfa_attention_bwd),
}
INSTALLED = [peer for peer in PEERS.values() if peer.installed]
CASES = [
    replace(attention_case(300), k=7),
    replace(attention_case(300, causal=True), k=7),
    replace(ffn_case(70, 24, 90), k=11),
]
PAIRS = [
    pytest.param(peer, case, id=f"{peer.name}-{case.kind}{'-causal' * case.causal}")
    for peer in INSTALLED
    for case in CASES
    if peer.does(case, BOTH) and peer.name not in ESTIMATES
]


def oracle(case: Case, inputs: Inputs, k: int | None) -> tuple[np.ndarray, ...]:
    """Output and gradients: dense, or restricted to the k best; in float64, by a mask."""
    query, key, value, dout = (array.astype(np.float64) for array in inputs)
    scores = case.scale * (query @ key.swapaxes(1, 2))
    allowed = np.ones(scores.shape, bool)
    if case.causal:
        allowed &= np.tri(case.queries, case.keys, dtype=bool)
    if k is not None:
        ranked = np.sort(np.where(allowed, scores, -np.inf), axis=2)[..., ::-1]
        allowed &= scores >= ranked[..., k - 1 : k]
    if case.kind == ATTENTION:
        out, kept = topk_np.dense_attention_fwd(query, key, value, mask=allowed)
        return out, *topk_np.dense_attention_bwd(kept, dout)[:3]
    weights = np.where(allowed, np.maximum(scores, 0), 0)
    dscores = np.where(weights > 0, dout @ value.swapaxes(1, 2), 0)
    return (
        weights @ value,
        dscores @ key,
        dscores.swapaxes(1, 2) @ query,
        weights.swapaxes(1, 2) @ dout,
    )


@pytest.mark.parametrize(("peer", "case"), PAIRS)
def test_a_peer_agrees_with_the_oracle_forward_and_backward(peer: Peer, case: Case) -> None:
    inputs = make_inputs(case)
    expected = oracle(case, inputs, case.k if peer.name in TOP_K else None)
    runs = peer.build(case, inputs)
    results = [runs.of(FORWARD)(), *runs.of(BOTH)()]
    for result, right in zip(results, [expected[0], *expected], strict=True):
        # topk_np's feed-forward layer has no head axis
        actual = np.asarray(result).reshape(right.shape)
        assert_close(actual, right.astype(np.float32), size=4.0)


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize("case", CASES[:2], ids=["full", "causal"])
def test_an_estimate_is_the_same_in_double_precision(name: str, case: Case) -> None:
    inputs = make_inputs(case)
    query, key, value, dout = (array.astype(np.float64) for array in inputs)
    fwd, bwd = ESTIMATES[name]
    out, kept = fwd(query, key, value, is_causal=case.causal)
    expected = [out, out, *bwd(kept, dout)[:3]]
    runs = PEERS[name].build(case, inputs)
    results = [runs.of(FORWARD)(), *runs.of(BOTH)()]
    for result, right in zip(results, expected, strict=True):
        assert_close(result, right.astype(np.float32), size=30.0)


@pytest.mark.parametrize("causal", [False, True])
def test_the_product_alone_computes_every_score_that_is_seen(
    monkeypatch: pytest.MonkeyPatch, causal: bool
) -> None:
    monkeypatch.setattr("topk_np.bench.peers.GEMM_QUERIES", 4)
    monkeypatch.setattr("topk_np.bench.peers.GEMM_KEYS", 5)
    case = replace(attention_case(12, causal=causal), heads=2)
    inputs = make_inputs(case)
    scores = inputs.query @ inputs.key.swapaxes(1, 2)
    last = [
        scores[head, first + 3, first + 3 if causal else 11]
        for head in range(2)
        for first in (0, 4, 8)
    ]
    found = np.asarray(PEERS[GEMM].build(case, inputs).forward(), np.float32)
    assert_close(found, np.asarray(last, np.float32), size=32)


def test_the_product_alone_has_no_backward_pass() -> None:
    assert not PEERS[GEMM].does(attention_case(8), BOTH)


def test_peers_on_pytorch_are_looked_up_when_they_are_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = Runs(lambda: "out")
    module = SimpleNamespace(sdpa=lambda case, inputs: runs)
    monkeypatch.setitem(sys.modules, "topk_np.bench.torch_peers", module)
    case = attention_case(8)
    assert PEERS[SDPA].build(case, make_inputs(case)) is runs


def test_inputs_are_the_same_in_every_process() -> None:
    case = ffn_case(5, 16, 40)
    first, again = make_inputs(case), make_inputs(case)
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)
    scores = first.query @ first.key.swapaxes(1, 2)
    assert 0.7 < scores.std() < 1.3
