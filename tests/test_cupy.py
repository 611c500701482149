"""What only CuPy can show: kernel launches, device memory, copies to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import topk_np
from tests.kernels.measures import launches, measured, no_copies_to_the_host, usable_cupy
from topk_np.kernels import tuning

cupy = usable_cupy()
KIB = 2**10


def normal(*shape: int, seed: int = 0) -> Any:
    return cupy.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


QUERIES, KEYS, CHUNK = 64, 256, 8
ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "query_offset": KEYS - QUERIES},
    "masked": {"mask": normal(QUERIES, KEYS) > 0},
    "window": {"window": (40, 5), "query_offset": 100},
}
OPTIONS: dict[str, Any] = {
    "bias": normal(QUERIES, KEYS),
    "softcap": 5.0,
    "dropout": (0.3, 1),
    "query_lengths": QUERIES - 2,
    "key_lengths": KEYS - 2,
    "query_offset": KEYS - QUERIES,
}
FFN: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu"},
    "by activation": {"activation": "gelu", "select": "activation"},
    "gated": {
        "activation": "silu",
        "gate": normal(KEYS, 16),
        "key_bias": normal(KEYS),
        "value_bias": normal(12),
        "select": "activation",
    },
}


def attention(options: dict[str, Any], **more: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A forward pass, and the backward pass of its result."""
    query, key, value = normal(QUERIES, 16), normal(KEYS, 16), normal(KEYS, 12)

    def fwd() -> Any:
        return topk_np.topk_attention_fwd(query, key, value, **{"k": 7, **options, **more})

    out, residuals = fwd()
    return fwd, lambda: topk_np.topk_attention_bwd(residuals, out)


def ffn(options: dict[str, Any], **more: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same of a feed-forward layer."""
    x, keys, values = normal(QUERIES, 16), normal(KEYS, 16), normal(KEYS, 12)

    def fwd() -> Any:
        return topk_np.topk_ffn_fwd(x, keys, values, k=7, **{**options, **more})

    out, residuals = fwd()
    return fwd, lambda: topk_np.topk_ffn_bwd(residuals, out)


def dense_attention(options: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same of dense attention."""
    query, key, value = normal(QUERIES, 16), normal(KEYS, 16), normal(KEYS, 12)

    def fwd() -> Any:
        return topk_np.dense_attention_fwd(query, key, value, chunk_size=CHUNK, **options)

    out, residuals = fwd()
    return fwd, lambda: topk_np.dense_attention_bwd(residuals, out)


def short_heads(options: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same of dense attention of many short heads, without chunks."""
    query, key, value = normal(2, 3, 8, 16), normal(2, 3, 9, 16), normal(2, 3, 9, 12)

    def fwd() -> Any:
        return topk_np.dense_attention_fwd(query, key, value, **options)

    out, residuals = fwd()
    return fwd, lambda: topk_np.dense_attention_bwd(residuals, out)


CASES = [
    *(pytest.param(attention, ATTENTION[name], id=name) for name in ATTENTION),
    *(pytest.param(ffn, FFN[name], id=name) for name in FFN),
    pytest.param(dense_attention, ATTENTION["causal"], id="dense"),
    pytest.param(short_heads, {}, id="short heads"),
    *(
        pytest.param(call, OPTIONS, id=f"{call.__name__} options")
        for call in (attention, dense_attention)
    ),
    pytest.param(attention, {"k": None, "p": 0.5, "max_k": 9}, id="top-p"),
]
# The most kernels that a chunk may take, forward and backward.
MOST = {
    "plain": (6, 9),
    "causal": (7, 9),
    "masked": (7, 9),
    "window": (7, 9),
    "relu": (6, 8),
    "by activation": (27, 28),
    "gated": (33, 38),
}


@pytest.mark.parametrize("name", MOST)
def test_a_chunk_takes_few_kernels_however_large_it_is(name: str) -> None:
    call, options = (attention, ATTENTION[name]) if name in ATTENTION else (ffn, FFN[name])
    for passed, most in zip(range(2), MOST[name], strict=True):
        one, two, four, eight = (
            launches(call(options, chunk_size=QUERIES // chunks)[passed]) for chunks in (1, 2, 4, 8)
        )
        assert one <= most, ("forward", "backward")[passed]
        assert eight <= 8 * most, ("forward", "backward")[passed]
        assert eight - four == 2 * (four - two)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=["plain", "causal"])
def test_a_chunk_of_several_heads_takes_as_many_kernels_as_one_of_two(
    options: dict[str, Any],
) -> None:
    """Two, since gradients of a head alone need not be numbered through the heads to be sorted."""

    def passes(heads: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        arrays = [normal(heads, 16, 8, seed=i) for i in range(3)]
        out, residuals = topk_np.topk_attention_fwd(*arrays, k=3, **options)
        return (
            lambda: topk_np.topk_attention_fwd(*arrays, k=3, **options),
            lambda: topk_np.topk_attention_bwd(residuals, out),
        )

    for two, eight in zip(passes(2), passes(8), strict=True):
        assert launches(two) == launches(eight)


def test_a_further_block_of_keys_takes_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, _ = attention({}, chunk_size=QUERIES)
    one = launches(forward)
    some = replace(tuning.current, device_scores=QUERIES * KEYS // 8, long_block=1)
    monkeypatch.setattr(tuning, "current", some)
    forward, _ = attention({}, chunk_size=QUERIES)
    _, residuals = forward()
    blocks = -(-KEYS // residuals.schedule.key_block)
    assert blocks > 4
    assert launches(forward) == one + blocks - 1


@pytest.mark.parametrize(("call", "options"), CASES)
def test_nothing_is_copied_to_the_host(call: Any, options: dict[str, Any]) -> None:
    forward, backward = call(options)
    with no_copies_to_the_host():
        forward()
        backward()
        with pytest.raises(RuntimeError, match="synchronization"):
            bool(normal(1)[0] > 0)  # this is how a copy would show


def test_top_k_copies_nothing_to_the_host() -> None:
    with no_copies_to_the_host():
        topk_np.top_k(normal(4, 30), 3)


LENGTH = 256  # of queries and keys: a number for each pair is 256 KiB


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"window": (100, 9)}, {"mask": normal(LENGTH, LENGTH) > 0}],
    ids=["plain", "causal", "window", "masked"],
)
def test_device_memory_stays_within_the_budget(options: dict[str, Any]) -> None:
    budget = 64 * KIB
    query, key, value, dout = (normal(LENGTH, 16, seed=i) for i in range(4))
    (out, residuals), peak = measured(
        lambda: topk_np.topk_attention_fwd(query, key, value, k=8, memory_budget=budget, **options)
    )
    results = out.nbytes + residuals.nbytes
    assert results <= peak <= 1.15 * results + budget
    grads, peak = measured(lambda: topk_np.topk_attention_bwd(residuals, dout))
    results = sum(grad.nbytes for grad in grads if grad is not None)
    assert results <= peak <= 1.15 * results + budget


@pytest.mark.parametrize("keys", [LENGTH, 8 * LENGTH])
def test_nothing_of_the_size_of_a_chunk_is_made_beside_its_scores(keys: int) -> None:
    query, key, value = normal(256, 16), normal(keys, 16), normal(keys, 16)
    (out, residuals), peak = measured(
        lambda: topk_np.topk_attention_fwd(query, key, value, k=8, memory_budget=2048 * KIB)
    )
    schedule = residuals.schedule
    scores = 4 * schedule.chunk_size * schedule.key_block
    assert peak - out.nbytes - residuals.nbytes < 1.5 * scores


def test_a_plan_of_device_arrays_is_the_one_that_the_call_follows() -> None:
    arrays = [normal(2, LENGTH, 16, seed=i) for i in range(3)]
    planned = topk_np.plan(*arrays, k=8)
    _, residuals = topk_np.topk_attention_fwd(*arrays, k=8)
    assert planned.chunk_size == residuals.schedule.chunk_size
    assert planned.key_block == residuals.schedule.key_block
    assert planned != topk_np.plan(*((2, LENGTH, 16),) * 3, k=8)


def test_numpy_and_cupy_are_not_mixed() -> None:
    here = np.ones((4, 4), np.float32)
    there = cupy.asarray(here)
    with pytest.raises(TypeError, match=r"key must come from .* query, cupy, got numpy"):
        topk_np.topk_attention(there, here, there, k=1)
    with pytest.raises(TypeError, match=r"mask must come from .* query, numpy, got cupy"):
        topk_np.topk_attention(here, here, here, k=1, mask=there > 0)
    with pytest.raises(TypeError, match=r"gate must come from .* x, cupy, got numpy"):
        topk_np.topk_ffn(there, there, there, k=1, gate=here)
    _, residuals = topk_np.topk_attention_fwd(there, there, there, k=1)
    with pytest.raises(TypeError, match=r"dout must come from .* the output, cupy, got numpy"):
        topk_np.topk_attention_bwd(residuals, here)
