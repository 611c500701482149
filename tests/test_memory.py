"""Beyond inputs and results, memory stays within the budget: nothing of Q x N elements exists."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

import topk_np
from tests.strategies import AttentionProblem, FFNProblem
from topk_np.schedule import threads

MIB = 2**20
LENGTH = 4096  # of queries and keys: a byte for each pair is 16 MiB
Result = TypeVar("Result")


def measured(function: Callable[[], Result]) -> tuple[Result, int]:
    """What a function returns, and the bytes that NumPy held at most while it ran."""
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def nbytes(*arrays: np.ndarray | None) -> int:
    return sum(array.nbytes for array in arrays if array is not None)


def assert_within(peak: int, results: int, budget: int) -> None:
    """Assert the promise of DESIGN: 1.15 of what is returned, and the budget."""
    assert peak <= 1.15 * results + budget, f"{peak / MIB:.1f} MiB for {results / MIB:.1f} MiB"


def attention_problem(scores: str = "random") -> AttentionProblem:
    rng = np.random.default_rng(0)

    def normal(width: int) -> np.ndarray:
        return rng.standard_normal((LENGTH, width)).astype(np.float32)

    query = normal(16) * (scores == "random")
    return AttentionProblem(query, normal(16), normal(16), normal(16), k=8)


def warm_up() -> None:
    """Load what loads on first use, and let each thread begin, so that neither is counted."""
    for worker in range(threads.MOST_TASKS):
        threads._touch_packing_buffer(worker)
    x = np.ones((2, 2), np.float32)
    out, residuals = topk_np.topk_attention_fwd(x, x, x, k=1)
    topk_np.topk_attention_bwd(residuals, out)
    topk_np.topk_ffn(x, x, x, k=1, activation="gelu")


@pytest.mark.parametrize(
    ("scores", "masks", "workers"),
    [("random", {}, 1), ("random", {"is_causal": True}, 2), ("all equal", {}, 2)],
    ids=["random", "causal", "all-equal"],
)
def test_topk_attention_stays_within_its_budget(
    scores: str, masks: dict[str, Any], workers: int
) -> None:
    problem = replace(attention_problem(scores), **masks)
    budget = 8 * MIB
    warm_up()
    options = {**problem.options, "memory_budget": budget, "workers": workers}
    (out, residuals), peak = measured(
        lambda: topk_np.topk_attention_fwd(*problem.arrays, **options)
    )
    assert residuals.nbytes == LENGTH * 8 * 8
    assert_within(peak, nbytes(out) + residuals.nbytes, budget)
    grads, peak = measured(lambda: topk_np.topk_attention_bwd(residuals, problem.dout))
    assert_within(peak, nbytes(*grads), budget)


def test_dense_attention_with_a_budget_stays_within_it() -> None:
    problem = attention_problem()
    budget = 8 * MIB
    warm_up()
    options = {**problem.dense_options, "memory_budget": budget, "workers": 2}
    (out, residuals), peak = measured(
        lambda: topk_np.dense_attention_fwd(*problem.arrays, **options)
    )
    assert_within(peak, nbytes(out), budget)
    grads, peak = measured(lambda: topk_np.dense_attention_bwd(residuals, problem.dout))
    assert_within(peak, nbytes(*grads), budget)


SLOPES, TABLE = np.ones((), np.float32), np.ones(32, np.float32)
OPTIONS: dict[str, dict[str, Any]] = {
    "bias by key": {"bias": np.zeros(LENGTH, np.float32)},
    "bias by query": {"bias": np.zeros((LENGTH, 1), np.float32)},
    "ALiBi": {"bias": topk_np.ALiBi(SLOPES)},
    "T5": {"bias": topk_np.T5Bias(TABLE)},
    "bias by function": {"bias": lambda i, j: j - i},
    "mask by function": {"mask": lambda i, j: j != i},
    "softcap": {"softcap": 2.0},
    "dropout": {"dropout": (0.1, 0)},
    "always kept": {"always_keep": (4, 4)},
    "lengths": {"query_lengths": 3000, "key_lengths": 2000},
    "all at once": {
        "bias": topk_np.T5Bias(TABLE),
        "softcap": 2.0,
        "dropout": (0.1, 0),
        "always_keep": (4, 4),
        "window": (2000, 0),
    },
}


@pytest.mark.parametrize("rule", [{"k": 8}, {"p": 0.9, "max_k": 8}], ids=["k", "p"])
@pytest.mark.parametrize("name", OPTIONS)
def test_topk_attention_with_options_stays_within_its_budget(
    name: str, rule: dict[str, Any]
) -> None:
    problem = attention_problem()
    budget = 8 * MIB
    warm_up()
    options = {**OPTIONS[name], **rule, "memory_budget": budget, "workers": 2}
    (out, residuals), peak = measured(
        lambda: topk_np.topk_attention_fwd(*problem.arrays, **options)
    )
    assert_within(peak, nbytes(out) + residuals.nbytes, budget)
    grads, peak = measured(lambda: topk_np.topk_attention_bwd(residuals, problem.dout))
    assert_within(peak, nbytes(*grads), budget)


@pytest.mark.parametrize("name", OPTIONS)
def test_dense_attention_with_options_stays_within_its_budget(name: str) -> None:
    problem = attention_problem()
    budget = 12 * MIB
    warm_up()
    options = {**OPTIONS[name], "memory_budget": budget, "workers": 2, "query_offset": 0}
    query = problem.query[:512]
    if name == "bias by query":
        options["bias"] = options["bias"][:512]
    if name == "lengths":
        options["query_lengths"] = 300
    (out, residuals), peak = measured(
        lambda: topk_np.dense_attention_fwd(query, *problem.arrays[1:], **options)
    )
    assert_within(peak, nbytes(out), budget)
    grads, peak = measured(lambda: topk_np.dense_attention_bwd(residuals, problem.dout[:512]))
    assert_within(peak, nbytes(*grads), budget)


@pytest.mark.parametrize(("select", "gated"), [("score", False), ("activation", True)])
def test_the_topk_ffn_stays_within_its_budget(select: str, gated: bool) -> None:
    problem = attention_problem()
    layer = FFNProblem(
        problem.query,
        problem.key,
        problem.value,
        problem.dout,
        k=8,
        activation="gelu",
        gate=problem.key[::-1] if gated else None,
        select=select,
    )
    budget = 8 * MIB
    warm_up()
    options = {**layer.options, "memory_budget": budget, "workers": 2}
    (out, residuals), peak = measured(lambda: topk_np.topk_ffn_fwd(*layer.arrays, **options))
    assert_within(peak, nbytes(out) + residuals.nbytes, budget)
    grads, peak = measured(lambda: topk_np.topk_ffn_bwd(residuals, layer.dout))
    assert_within(peak, nbytes(*grads), budget)


@pytest.mark.parametrize("function", ["topk_attention", "dense_attention"])
def test_half_precision_is_summed_in_few_wide_heads(function: str) -> None:
    """Many heads: their gradients in float32, all at once, would be twice what is returned."""
    warm_up()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((128, 256, 64)).astype(np.float16)
    budget = 4 * MIB
    options: dict[str, Any] = {"memory_budget": budget, "chunk_size": 64, "workers": 2}
    options |= {"k": 4} if function == "topk_attention" else {}
    out, residuals = getattr(topk_np, function + "_fwd")(x, x, x, **options)
    grads, peak = measured(lambda: getattr(topk_np, function + "_bwd")(residuals, out))
    assert_within(peak, nbytes(*grads), budget)


@pytest.mark.parametrize("layout", ["half", "strided", "broadcast"])
def test_keys_that_have_to_be_copied_are_copied_block_by_block(layout: str) -> None:
    warm_up()
    query, key = np.ones((4, 64), np.float32), np.ones((2**17, 128), np.float32)[:, ::2]
    if layout == "half":
        query, key = query.astype(np.float16), np.ones((2**17, 64), np.float16)
    elif layout == "broadcast":
        key = np.broadcast_to(np.ones((1, 64), np.float32), (2**17, 64))
    budget = 8 * MIB  # the keys in float32 are 32
    out, peak = measured(
        lambda: topk_np.topk_attention(query, key, key, k=8, memory_budget=budget, workers=1)
    )
    assert_within(peak, out.nbytes, budget)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_least_budget_named_in_the_error_works_and_one_byte_less_does_not(dtype: str) -> None:
    problem = replace(attention_problem().astype(dtype), k=4)
    inputs = (problem.query[:3], problem.key, problem.value)
    with pytest.raises(ValueError, match="memory_budget must be at least") as error:
        topk_np.topk_attention(*inputs, k=4, memory_budget=1)
    least = int(next(word for word in str(error.value).split() if word.isdigit()))
    assert topk_np.topk_attention(*inputs, k=4, memory_budget=least).shape == (3, 16)
    with pytest.raises(ValueError, match=f"at least {least} .*got {least - 1}"):
        topk_np.topk_attention(*inputs, k=4, memory_budget=least - 1)


def test_keys_are_taken_in_blocks_where_a_row_of_scores_is_long() -> None:
    warm_up()
    rng = np.random.default_rng(0)
    query = rng.standard_normal((64, 2)).astype(np.float32)
    key = rng.standard_normal((2**18, 2)).astype(np.float32)  # 64 MiB of scores
    budget = 4 * MIB
    options: dict[str, Any] = {"k": 4, "memory_budget": budget, "workers": 1}
    out, peak = measured(lambda: topk_np.topk_attention(query, key, key, **options))
    assert_within(peak, out.nbytes, budget)


def test_dense_gradients_of_long_keys_stay_within_the_budget() -> None:
    warm_up()
    query, key = np.ones((16, 64), np.float32), np.ones((2**16, 64), np.float32)
    budget = 24 * MIB
    out, residuals = topk_np.dense_attention_fwd(
        query, key, key, memory_budget=budget, chunk_size=4, workers=8
    )
    grads, peak = measured(lambda: topk_np.dense_attention_bwd(residuals, out))
    assert_within(peak, nbytes(*grads), budget)


def test_short_rows_of_equal_scores_stay_within_the_budget() -> None:
    warm_up()
    query, key = np.zeros((2048, 16), np.float32), np.ones((2048, 16), np.float32)
    budget = 16 * MIB
    out, peak = measured(
        lambda: topk_np.topk_attention(query, key, key, k=64, memory_budget=budget, workers=8)
    )
    assert_within(peak, out.nbytes, budget)


@pytest.mark.parametrize(("k", "dtype"), [(64, "float32"), (200, "float64")])
@pytest.mark.parametrize("scores", ["random", "all equal", "rising", "drifting"])
def test_a_task_takes_its_share_of_the_budget_whatever_the_scores(
    scores: str, k: int, dtype: str
) -> None:
    """What each block of keys adds to the best is much or little, as its scores are."""
    rng = np.random.default_rng(0)
    noise = {"random": 1.0, "drifting": 0.3}.get(scores, 0.0)
    query, key = noise * rng.standard_normal((512, 8)), rng.standard_normal((16384, 8))
    if scores in ("rising", "drifting"):
        query[:, 0] = 1
        key[:, 0] = 3 * np.linspace(0, 1, len(key)) + noise * key[:, 0]
    query, key = query.astype(dtype), key.astype(dtype)
    warm_up()
    (out, residuals), peak = measured(
        lambda: topk_np.topk_attention_fwd(query, key, key, k=k, workers=1)
    )
    assert_within(peak, nbytes(out) + residuals.nbytes, 64 * MIB // 8)


def test_eight_tasks_stay_within_the_budget_where_every_block_adds_many_keys() -> None:
    rng = np.random.default_rng(5)
    query, key = rng.standard_normal((4096, 8)), rng.standard_normal((8192, 8))
    query[:, 0], query[:, 1:] = 1, 0.3 * query[:, 1:]
    key[:, 0] += np.linspace(0, 3, len(key))
    warm_up()
    (out, residuals), peak = measured(
        lambda: topk_np.topk_attention_fwd(query, key, key, k=200, workers=8)
    )
    assert_within(peak, nbytes(out) + residuals.nbytes, 64 * MIB)
