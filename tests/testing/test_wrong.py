"""Each wrong implementation is caught by the property that should, and by no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.testing import wrong
from topk_np.testing import check_attention

CHUNKED: dict[str, Any] = {"fwd": wrong.chunked_fwd}
CASES: list[tuple[Callable[..., Any], dict[str, Any], str, list[str]]] = [
    (wrong.causal_mask_off_by_one, {}, "causal", ["values", "kind", "strides"]),
    (wrong.ties_beyond_k, {}, "exactly_k", ["values", "all_kept"]),
    (wrong.scaled_twice, {}, "scale", ["kind", "repeatable"]),
    (wrong.softmax_before_masking, {}, "mask", ["values", "masked_rows"]),
    (wrong.masked_nan_leaks, {}, "masked_nan", ["mask"]),
    (wrong.uniform_on_masked_rows, {}, "masked_rows", ["mask", "masked_nan"]),
    (wrong.nan_ranks_last, {}, "poisoned", ["values", "ties"]),
    (wrong.mass_one_too_few, {}, "mass", ["values"]),
    (
        wrong.mask_function_of_rows,
        {"options": ["mask_function", "query_offset"]},
        "mask_function",
        ["values"],
    ),
    (wrong.alibi_of_earlier_keys, {"options": ["alibi"]}, "alibi", ["values"]),
    (wrong.t5_bias_of_one_way, {"options": ["t5_bias"]}, "t5_bias", ["values"]),
    (wrong.all_scores_at_once, {}, "memory_peak", ["memory_budget"]),
    (wrong.sums_by_worker, {}, "workers", ["values"]),
    (
        wrong.chunked,
        {**CHUNKED, "bwd": wrong.last_dropout_reused_bwd},
        "gradients_dropout",
        ["dropout", "gradients"],
    ),
    (
        wrong.chunked,
        {**CHUNKED, "bwd": wrong.key_gradient_missing_a_chunk_bwd},
        "gradients",
        ["values", "dropout"],
    ),
]
NAMES = [*(case[0].__name__ for case in CASES[:-2]), "dropout_reused", "key_gradient"]


@pytest.mark.parametrize(("function", "pair", "caught_by", "others"), CASES, ids=NAMES)
def test_a_wrong_implementation_is_caught_by_the_property_that_should(
    function: Callable[..., Any], pair: dict[str, Any], caught_by: str, others: list[str]
) -> None:
    report = check_attention(function, **pair, only=[caught_by, *others])
    assert report.names("failed") == [caught_by]
    assert report.names("passed") == [
        result.name for result in report.results if result.name in others
    ]
    assert not report.passed
    problem = report[caught_by].example
    if caught_by in ("memory_peak", "workers"):  # which are about long problems
        return
    assert max(problem.queries, problem.keys) <= 4, problem


def test_the_right_backward_pass_in_chunks_passes() -> None:
    pair: dict[str, Any] = {"fwd": wrong.chunked_fwd, "bwd": wrong.chunked_bwd}
    only = ["values", "long", "gradients", "gradients_long", "dropout", "gradients_dropout"]
    report = check_attention(wrong.chunked, **pair, only=only)
    assert report.names("passed") == [r.name for r in report.results], report


def test_the_message_names_the_wrong_gradient() -> None:
    bwd = wrong.key_gradient_missing_a_chunk_bwd
    report = check_attention(wrong.chunked, fwd=wrong.chunked_fwd, bwd=bwd, only=["gradients"])
    assert "the gradient of key" in report["gradients"].message
