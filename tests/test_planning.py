"""`plan` says how a call is cut and what it will hold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import topk_np
from tests.test_memory import MIB, measured, warm_up
from topk_np import plan
from topk_np.schedule.plan import Workload


@pytest.mark.parametrize(
    ("query", "key", "options"),
    [
        ((4, 2048, 64), (4, 2048, 64), {"k": 64}),
        ((4, 2048, 64), (1, 2048, 64), {"k": 8}),
        ((1, 4096, 32), (1, 8192, 32), {"k": 64}),
        ((2, 1024, 64), (2, 1024, 64), {"k": 512}),
        ((4, 4096, 64), (4, 4096, 64), {"k": 64, "workers": 2}),
        ((32, 64, 16), (32, 64, 16), {"k": 8}),
        ((4, 128, 64), (4, 128, 64), {"k": 64}),
        ((64, 128, 16), (64, 128, 16), {"k": 16, "is_causal": True}),
        ((64, 64, 32), (1, 64, 32), {"k": 8}),
        ((256, 40, 16), (256, 40, 16), {"k": 16, "dtype": "float16"}),
        ((8, 2048, 64), (8, 2048, 64), {"k": 8, "dtype": "float16"}),
        ((4, 1024, 64), (4, 16384, 64), {"k": 64, "memory_budget": 16 * MIB}),
        ((2, 2048, 64), (2, 2048, 64), {"k": 32, "dtype": "float64"}),
        ((2, 2048, 64), (2, 2048, 64), {"k": 32, "is_causal": True}),
    ],
)
def test_the_predicted_peak_is_within_a_quarter_of_the_measured_one(
    query: tuple[int, ...], key: tuple[int, ...], options: dict[str, Any]
) -> None:
    # What several threads hold at once is partly chance; the plan is for the worst.
    options = {"workers": 1, **options}
    dtype = options.pop("dtype", "float32")
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in (query, key, key)]
    dout = np.ones(query, dtype)
    warm_up()

    def forward_and_backward() -> object:
        out, residuals = topk_np.topk_attention_fwd(*arrays, **options)
        return out, topk_np.topk_attention_bwd(residuals, dout)

    _, peak = measured(forward_and_backward)
    mask = options.pop("is_causal", False)
    predicted = plan(*arrays, mask=mask, **options).peak
    assert 0.75 * peak <= predicted <= 1.25 * peak


def test_the_plan_is_the_one_that_the_call_follows() -> None:
    x = np.ones((3, 300, 8), np.float32)
    cases: list[dict[str, Any]] = [{}, {"chunk_size": 20}, {"memory_budget": MIB}]
    for options in cases:
        _, residuals = topk_np.topk_attention_fwd(x, x, x, k=5, **options)
        schedule, sizes = residuals.schedule, plan(x, x, x, k=5, **options)
        assert sizes.chunk_size == schedule.chunk_size
        assert sizes.key_block == schedule.key_block
        assert sizes.backward_chunk_size == schedule.backward_chunk_size
        assert sizes.residual_bytes == residuals.nbytes


def test_a_plan_takes_shapes_for_arrays() -> None:
    x = np.ones((2, 30, 8), np.float32)
    assert plan(x, x, x, k=5) == plan(x.shape, x.shape, x.shape, k=5)


def test_a_plan_does_not_depend_on_workers_but_what_is_held_does() -> None:
    shape = (4, 4096, 64)
    one, two = (plan(shape, shape, shape, k=64, workers=workers) for workers in (1, 2))
    assert (one.chunk_size, one.key_block) == (two.chunk_size, two.key_block)
    assert one.forward_scratch * 2 == two.forward_scratch


@pytest.mark.parametrize("budget", [MIB // 2, MIB, 64 * MIB])
def test_the_planned_scratch_stays_within_the_budget(budget: int) -> None:
    shape = (2, 10**6, 64)
    sizes = plan(shape, shape, shape, k=64, workers=64, memory_budget=budget)
    assert max(sizes.forward_scratch, sizes.backward_scratch) <= budget


def test_a_gate_adds_its_gradient_and_a_third_number_a_slot() -> None:
    x, units = (10, 4), (20, 4)
    plain, gated = (plan(x, units, units, k=5, gate=gate) for gate in (False, True))
    assert gated.grad_bytes - plain.grad_bytes == 20 * 4 * 4
    assert gated.residual_bytes - plain.residual_bytes == 10 * 5 * 4


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"memory_budget": 100}, ValueError, ("memory_budget must be at least", "got 100")),
        ({"k": 0}, ValueError, ("k must be at least 1", "got 0")),
        ({"k": 1.5}, TypeError, ("k must be an integer", "1.5")),
        ({"dtype": "int8"}, ValueError, ("dtype must be one of", "'float32'", "'int8'")),
        ({"select": "best"}, ValueError, ("select must be one of", "'activation'", "'best'")),
        ({"query": 5}, TypeError, ("query must be an array or a shape", "int")),
        ({"gate": 1}, TypeError, ("gate must be True or False", "1")),
        ({"query": (5,)}, ValueError, ("query must have at least 2 axes", "(5,)")),
        ({"query": (2.0, 3)}, TypeError, ("length of query must be an integer", "2.0")),
        ({"query": (4, 3)}, ValueError, ("key's last axis", "3", "2")),
        ({"value": (7, 2)}, ValueError, ("value's second last axis", "7", "5")),
        ({"query": (3, 4, 2), "key": (2, 5, 2)}, ValueError, ("leading axes", "(3,)", "(2,)")),
    ],
)
def test_a_wrong_argument_is_named(
    change: dict[str, Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    options: dict[str, Any] = {"query": (4, 2), "key": (5, 2), "value": (5, 3), "k": 1, **change}
    shapes = (options.pop("query"), options.pop("key"), options.pop("value"))
    with pytest.raises(error) as caught:
        plan(*shapes, **options)
    for word in words:
        assert word in str(caught.value)


def test_a_plan_for_ranking_by_activation_is_the_one_that_the_layer_follows() -> None:
    x, units = np.ones((512, 16), np.float32), np.ones((16384, 16), np.float32)
    _, residuals = topk_np.topk_ffn_fwd(x, units, units, k=64, select="activation")
    sizes = plan(x, units, units, k=64, select="activation")
    schedule = residuals.schedule
    assert (sizes.chunk_size, sizes.key_block) == (schedule.chunk_size, schedule.key_block)
    assert sizes.key_block < plan(x, units, units, k=64).key_block
    assert Workload.of(residuals.call).score_matrices == 5


@pytest.mark.parametrize(
    ("options", "score_matrices", "slot_matrices"),
    [
        ({"k": 2}, 1, 0),
        ({"p": 0.5, "max_k": 2}, 3, 2),
        ({"k": 2, "always_keep": (1, 1)}, 1, 2),
        ({"k": 2, "dropout": (0.5, 0)}, 1, 8),
        ({"k": 2, "bias": topk_np.T5Bias(np.ones(8))}, 1, 8),
        ({"k": 2, "bias": lambda i, j: j - i}, 4, 0),
    ],
)
def test_what_an_option_holds_beside_the_scores_is_counted(
    options: dict[str, Any], score_matrices: int, slot_matrices: int
) -> None:
    x = np.ones((6, 4))
    _, residuals = topk_np.topk_attention_fwd(x, x, x, **options)
    work = Workload.of(residuals.call)
    assert (work.score_matrices, work.slot_matrices) == (score_matrices, slot_matrices)
    # What a bias learns waits with the other gradients of a task.
    assert work.held_matrices == isinstance(options.get("bias"), topk_np.T5Bias)


def test_an_executor_counts_as_all_tasks_at_once() -> None:
    shape = (16, 2048, 64)
    with ThreadPoolExecutor(1) as pool:
        held = plan(shape, shape, shape, k=8, workers=pool).forward_scratch
    assert held == plan(shape, shape, shape, k=8, workers=8).forward_scratch


@pytest.mark.parametrize(
    ("options", "masked"),
    [
        ({}, False),
        ({"is_causal": True}, True),
        ({"mask": np.eye(6, dtype=bool)}, True),
        ({"always_keep": (1, 0)}, True),
        ({"scale": 2.0}, False),
    ],
)
def test_a_mask_is_counted(options: dict[str, Any], masked: bool) -> None:
    x = np.ones((6, 4))
    _, residuals = topk_np.topk_attention_fwd(x, x, x, k=2, **options)
    assert Workload.of(residuals.call).masked == masked


@pytest.mark.parametrize(
    ("key", "copied"),
    [
        (np.ones((6, 4), np.float32), False),
        (np.ones((6, 4), np.float16), True),
        (np.ones((12, 4), np.float32)[::2], False),
        (np.ones((6, 8), np.float32)[:, ::2], True),
    ],
    ids=["plain", "half precision", "gaps between rows", "gaps between numbers"],
)
def test_keys_that_are_cast_or_laid_out_anew_are_counted(key: np.ndarray, copied: bool) -> None:
    value = np.ones((6, 4), key.dtype)
    _, residuals = topk_np.topk_attention_fwd(value, key, value, k=2)
    assert Workload.of(residuals.call).copied == copied
