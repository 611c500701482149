"""The classifier: gradients as slopes however it attends, padding that counts for nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.backends import Backend
from tests.oracles import assert_close
from topk_np.layers import BlockConfig
from topk_np.layers.attention_kinds import KINDS
from topk_np.training import (
    Classifier,
    classifier,
    classifier_bwd,
    classifier_fwd,
    flatten,
    tree_map,
    unflatten,
)

ATTENTIONS = tuple(KINDS)
MODEL = Classifier(vocabulary=7, classes=3, length=6, layers=2, width=4, hidden=5)


def problem(model: Classifier, seed: int = 0) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Parameters in double precision, padded tokens, lengths, and the gradient to send back."""
    rng = np.random.default_rng(seed)
    params = tree_map(lambda a: a + 0.3 * rng.standard_normal(a.shape), model.init(rng))
    lead = (3, 2) if model.pairs else (3,)
    tokens = rng.integers(0, model.vocabulary, (*lead, model.length))
    return (
        params, tokens, rng.integers(1, model.length + 1, lead), rng.standard_normal((3, 3))
    )  # fmt: skip


@given(
    attention=st.sampled_from(ATTENTIONS),
    pairs=st.booleans(),
    ffn_k=st.none() | st.just(2),
    recompute=st.booleans(),
    seed=st.integers(0, 9),
)
@example("dense", True, 2, True, 0)
@example("chunked", False, None, False, 0)
@example("topk", True, None, True, 0)
@example("performer", False, 2, False, 0)
@example("rfa", True, None, False, 0)
def test_gradients_are_slopes(
    attention: str, pairs: bool, ffn_k: int | None, recompute: bool, seed: int
) -> None:
    block = BlockConfig(
        2, attention, k=2, ffn_k=ffn_k, features=8, chunk_size=2, recompute=recompute
    )
    model = replace(MODEL, pairs=pairs, block=block)
    params, tokens, lengths, dlogits = problem(model, seed)
    _, residuals = classifier_fwd(tokens, params, model, lengths=lengths)
    grads = flatten(classifier_bwd(residuals, dlogits))
    assert list(grads) == list(flatten(params))
    rng = np.random.default_rng(seed)
    direction = {name: rng.standard_normal(array.shape) for name, array in grads.items()}

    def loss(step: float) -> float:
        moved = {name: a + step * direction[name] for name, a in flatten(params).items()}
        return float(np.sum(dlogits * classifier(tokens, unflatten(moved), model, lengths=lengths)))

    slope = sum(float(np.sum(grads[name] * direction[name])) for name in grads)
    h = 1e-6
    above, below = (loss(h) - loss(0)) / h, (loss(0) - loss(-h)) / h
    assume(abs(above - below) < 1e-3 * (1 + abs(slope)))  # no kink of a selection or ReLU between
    assert abs((above + below) / 2 - slope) < 1e-5 * (1 + abs(slope))


def test_recomputed_gradients_are_those_kept_bit_for_bit() -> None:
    params, tokens, lengths, dlogits = problem(MODEL)
    found = []
    for recompute in (False, True):
        model = replace(MODEL, block=BlockConfig(2, "topk", k=2, recompute=recompute))
        _, residuals = classifier_fwd(tokens, params, model, lengths=lengths)
        found.append(flatten(classifier_bwd(residuals, dlogits)))
    for name in found[0]:
        assert found[0][name].tobytes() == found[1][name].tobytes()


def test_what_is_dropped_depends_on_a_seed_and_nothing_is_without() -> None:
    model = replace(MODEL, block=BlockConfig(dropout=0.5))
    params, tokens, lengths, _ = problem(model)
    outs = [
        classifier(tokens, params, model, lengths=lengths, dropout_seed=seed)
        for seed in (None, 0, 0, 1)
    ]
    assert outs[1].tobytes() == outs[2].tobytes()
    assert not np.allclose(outs[0], outs[1])
    assert not np.allclose(outs[1], outs[3])
    assert outs[0].tobytes() == classifier(tokens, params, MODEL, lengths=lengths).tobytes()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_counts_for_nothing(attention: str) -> None:
    model = replace(MODEL, block=BlockConfig(2, attention, k=2, features=8))
    params, tokens, lengths, _ = problem(model)
    logits = classifier(tokens, params, model, lengths=lengths)
    for row, length in enumerate(lengths):
        other = tokens.copy()
        other[row, length:] = 1
        assert_close(classifier(other, params, model, lengths=lengths), logits, size=10.0)
        alone = classifier(tokens[row : row + 1, :length], params, model)
        assert_close(alone, logits[row : row + 1], size=1e3)


def test_topk_with_all_keys_and_chunks_are_dense(xp: Backend) -> None:
    params, tokens, lengths, _ = problem(MODEL)
    params, tokens, lengths = tree_map(xp.asarray, params), *xp.arrays(tokens, lengths)
    dense, *others = (
        xp.to_numpy(classifier(tokens, params, replace(MODEL, block=block), lengths=lengths))
        for block in (
            BlockConfig(2),
            BlockConfig(2, "topk", k=6),
            BlockConfig(2, "chunked", chunk_size=2),
            BlockConfig(2, ffn_k=5),
        )
    )
    for other in others:
        assert_close(other, dense, size=100.0)


def test_blocks_are_taken_by_number_whatever_their_order() -> None:
    """A file gives them by name, in which "10" comes before "2"."""
    model = replace(MODEL, layers=12)
    params, tokens, lengths, dlogits = problem(model)
    by_name = {**params, "blocks": dict(sorted(params["blocks"].items()))}
    assert list(by_name["blocks"])[:3] == ["0", "1", "10"]
    logits, residuals = classifier_fwd(tokens, params, model, lengths=lengths)
    again, others = classifier_fwd(tokens, by_name, model, lengths=lengths)
    np.testing.assert_array_equal(again, logits)
    grads, same = (flatten(classifier_bwd(kept, dlogits)) for kept in (residuals, others))
    for name, grad in grads.items():
        np.testing.assert_array_equal(same[name], grad)
