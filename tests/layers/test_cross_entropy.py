"""Cross-entropy: the logarithm of a probability, averaged over what counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.backends import Backend
from tests.layers.test_linear import leads
from tests.layers.trios import assert_half_precision_is_rounded_once, assert_layer
from tests.oracles import assert_close
from tests.strategies import seeds
from topk_np.layers import cross_entropy, cross_entropy_bwd, cross_entropy_fwd


@given(
    data=st.data(),
    lead=leads,
    classes=st.integers(1, 5),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    ignored=st.sampled_from([-100, 0]),
    seed=seeds,
)
def test_it_is_the_mean_log_probability_of_what_counts(
    xp: Backend,
    data: st.DataObject,
    lead: Any,
    classes: int,
    smoothing: float,
    ignored: int,
    seed: int,
) -> None:
    entries = st.integers(0, classes - 1) | st.just(ignored)
    targets = data.draw(hnp.arrays(np.int64, lead, elements=entries))
    logits = np.random.default_rng(seed).standard_normal((*lead, classes))
    terms = []
    for place in np.ndindex(lead):
        if targets[place] != ignored:
            probabilities = np.exp(logits[place]) / np.exp(logits[place]).sum()
            aim = np.full(classes, smoothing / classes)
            aim[targets[place]] += 1 - smoothing
            terms.append(-np.sum(aim * np.log(probabilities)))
    options: Any = {"label_smoothing": smoothing, "ignore_index": ignored}
    loss = cross_entropy(*xp.arrays(logits, targets), **options)
    assert_close(xp.to_numpy(loss), np.asarray(np.mean(terms) if terms else 0.0), size=10.0)

    def fwd(logits: Any) -> Any:
        like = xp.asarray(targets) if not isinstance(logits, np.ndarray) else targets
        return cross_entropy_fwd(logits, like, **options)

    assert_layer(xp, fwd, cross_entropy_bwd, logits)
    if terms:
        _, residuals = fwd(logits)
        dlogits = cross_entropy_bwd(residuals, 1.0)
        assert not np.any(dlogits[targets == ignored])


def test_nothing_overflows_and_what_does_not_count_may_be_nan() -> None:
    logits = np.array([[1e4, 0.0], [np.nan, np.inf], [-1e4, 0.0]], np.float32)
    loss, residuals = cross_entropy_fwd(logits, np.array([1, -100, 1]))
    assert loss == 5e3
    dlogits = cross_entropy_bwd(residuals, np.ones((), np.float32))
    assert_close(dlogits, np.array([[0.5, -0.5], [0, 0], [0, 0]], np.float32))


def test_half_precision_gives_a_loss_in_single() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((30, 9)), rng.integers(0, 9, 30)
    assert_half_precision_is_rounded_once(cross_entropy_fwd, cross_entropy_bwd, logits, targets)
    assert cross_entropy(logits.astype(np.float16), targets).dtype == np.float32


@pytest.mark.parametrize(
    ("targets", "options", "error", "message"),
    [
        (np.array([0, 3]), {}, ValueError, r"targets must lie in 0 .. 2 or be ignore_index, -100"),
        (np.array([0, -1]), {}, ValueError, "got -1 .. 0"),
        (np.array([0]), {}, ValueError, r"its last axis, \(2,\), got \(1,\)"),
        (np.array([0.0, 1.0]), {}, TypeError, "targets must be integers"),
        (np.array([0, 1]), {"label_smoothing": 1.5}, ValueError, "label_smoothing must be at lea"),
    ],
)
def test_bad_input_is_named(
    targets: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cross_entropy(np.ones((2, 3)), targets, **options)
