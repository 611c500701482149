"""Biases by distance: their published forms, positions anywhere, and gradients as tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import topk_np
from tests import calls
from tests.backends import Backend
from tests.oracles import assert_close, sum_to_shape, t5_bucket
from topk_np import ALiBi, T5Bias

NO_MORE = {"always_keep": None, "query_offset": None}

pytestmark = pytest.mark.usefixtures("tiny_plans")


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_slopes_are_those_of_the_paper(heads: int, exponents: list[float]) -> None:
    """For 12 heads: those of 8, and every other one of 16."""
    np.testing.assert_allclose(ALiBi.of_heads(heads).slopes, np.exp2(-np.array(exponents)))


@pytest.mark.parametrize("heads", [0, -1, 2.0, True])
def test_slopes_are_for_a_number_of_heads(heads: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="heads must be"):
        ALiBi.of_heads(heads)


def table_of_buckets(buckets: int, bidirectional: bool, most: int, distances: np.ndarray) -> Any:
    """The buckets of distances, read off attention's log-sum-exp with one key at each."""
    bias = T5Bias(np.arange(float(buckets)), bidirectional, most)
    x = np.zeros((1, 1))
    found = []
    for distance in distances:
        key_side = np.zeros((1, 1))
        _, lse = topk_np.dense_attention(
            x, key_side, x, bias=bias, query_offset=-int(distance), return_lse=True
        )
        found.append(int(lse[0]))
    return np.array(found)


def bucket_in_single_precision(distance: int, buckets: int, bidirectional: bool, most: int) -> int:
    """As published implementations have it, with logarithms in float32."""
    start = 0
    if bidirectional:
        buckets //= 2
        start = buckets * (distance > 0)
        distance = abs(distance)
    else:
        distance = -min(distance, 0)
    exact = buckets // 2
    if distance < exact:
        return start + distance
    single = np.float32
    logarithm = np.log(single(distance) / single(exact)) / single(math.log(most / exact))
    return start + min(exact + int(logarithm * single(buckets - exact)), buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (64, 256), (8, 20), (9, 12)])
def test_buckets_are_those_of_t5(buckets: int, most: int, bidirectional: bool) -> None:
    distances = np.arange(-most - 5, most + 6)
    found = table_of_buckets(buckets, bidirectional, most, distances)
    wanted = [t5_bucket(int(d), buckets, bidirectional, most) for d in distances]
    assert found.tolist() == wanted
    if (buckets, most) == (32, 128):  # the model's own
        published = [bucket_in_single_precision(int(d), 32, bidirectional, 128) for d in distances]
        assert found.tolist() == published


@pytest.mark.parametrize("first", [2**40, -(2**40)])
@pytest.mark.parametrize("attention", ["dense_attention", "topk_attention"])
def test_positions_may_be_far_from_the_keys(xp: Backend, attention: str, first: int) -> None:
    rng = np.random.default_rng(0)
    arrays = xp.arrays(*(rng.standard_normal((4, 3)) for _ in range(3)))
    rule: dict[str, Any] = {"k": 2} if attention.startswith("topk") else {}
    bias = T5Bias(xp.asarray(rng.standard_normal(8)), max_distance=16)
    attend = getattr(topk_np, attention)
    rule |= {"query_offset": first, "always_keep": (0, 2)}
    out, plain = attend(*arrays, bias=bias, **rule), attend(*arrays, **rule)
    # All keys lie in one bucket, so that it changes nothing.
    assert_close(xp.to_numpy(out), xp.to_numpy(plain), size=10)
    if first < 0:  # and none is at or before a query
        assert_close(xp.to_numpy(plain), xp.to_numpy(attend(*arrays, **rule | NO_MORE)))


@pytest.mark.parametrize("bias", [ALiBi(np.ones(())), T5Bias(np.ones(8)), lambda i, j: i - j])
def test_positions_too_far_to_compute_with_are_refused(bias: Any) -> None:
    x = np.ones((2, 2))
    with pytest.raises(ValueError, match=r"query_offset must be at most 2\^62 .* position -?1180"):
        topk_np.topk_attention(x, x, x, k=1, bias=bias, query_offset=2**70)


def test_a_bias_of_minus_infinity_masks(xp: Backend) -> None:
    rng = np.random.default_rng(0)
    arrays = xp.arrays(*(rng.standard_normal((4, 3)) for _ in range(3)))
    mask = rng.random((4, 4)) < 0.5
    bias = xp.asarray(np.where(mask, 0.0, -np.inf))
    for k in (1, 4):
        out = topk_np.topk_attention(*arrays, k=k, bias=bias)
        wanted = topk_np.topk_attention(*arrays, k=k, mask=xp.asarray(mask))
        assert_close(xp.to_numpy(out), xp.to_numpy(wanted))


SHAPES = [
    *[(), (7,), (1, 7), (5, 1), (5, 7)],
    *[(2, 1, 1), (2, 1, 7), (2, 5, 1), (2, 5, 7), (1, 5, 7)],
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("window", [None, (2, 0)])
def test_the_gradient_of_an_array_is_summed_to_its_shape(
    xp: Backend, shape: tuple[int, ...], k: int, window: Any
) -> None:
    """From the textbook's gradient of the scores, over the kept pairs."""
    rng = np.random.default_rng(0)
    query, key, value, dout = (rng.standard_normal((2, n, 3)) for n in (5, 7, 7, 5))
    bias = rng.standard_normal(shape)
    given = (*xp.arrays(query, key, value),)
    options: dict[str, Any] = {
        "bias": xp.asarray(bias),
        "chunk_size": 2,
        "window": window,
        "query_offset": 2,
    }
    _, residuals = topk_np.topk_attention_fwd(*given, k=k, **options)
    pairs = calls.selected_pairs(xp.to_numpy(residuals.indices), 7)
    scores = np.where(pairs, query @ key.mT / math.sqrt(3) + bias, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    dweights = dout @ value.mT
    dscores = weights * (dweights - np.sum(weights * dweights, axis=-1, keepdims=True))
    found = topk_np.topk_attention_bwd(residuals, xp.asarray(dout)).bias
    assert_close(xp.to_numpy(found), sum_to_shape(dscores, shape), size=10)
    if k == 7:
        _, dense = topk_np.dense_attention_fwd(*given, **options)
        found = topk_np.dense_attention_bwd(dense, xp.asarray(dout)).bias
        assert_close(xp.to_numpy(found), sum_to_shape(dscores, shape), size=10)


def test_the_gradient_of_a_table_counts_every_pair_once(xp: Backend) -> None:
    """With all weights equal and one value for all: the scores' gradients, by bucket."""
    x = xp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3)))
    table = xp.asarray(np.zeros((4, 2)))
    options: dict[str, Any] = {"bias": T5Bias(table, max_distance=4), "scale": 0.0}
    _, residuals = topk_np.topk_attention_fwd(x, x, x, k=5, **options)
    full = xp.asarray(np.zeros((2, 5, 5)))
    _, other = topk_np.topk_attention_fwd(x, x, x, k=5, bias=full, scale=0.0)
    by_pair = xp.to_numpy(topk_np.topk_attention_bwd(other, x).bias)
    wanted = np.zeros((4, 2))
    for h, i, j in np.ndindex(2, 5, 5):
        wanted[t5_bucket(j - i, 4, True, 4), h] += by_pair[h, i, j]
    assert_close(xp.to_numpy(topk_np.topk_attention_bwd(residuals, x).bias), wanted, size=10)
