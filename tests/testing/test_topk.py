"""`check_topk` passes our own selection and catches wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import topk_np
from topk_np.cli import main
from topk_np.testing import CannotCheck, check_topk


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_our_own_selection_has_every_property(dtype: str) -> None:
    report = check_topk(topk_np.top_k, dtype=dtype, examples=15)
    assert report.names("passed") == [result.name for result in report.results], str(report)


def take(x: np.ndarray, order: np.ndarray) -> Any:
    return np.take_along_axis(x, order, axis=-1), order


def smallest(x: np.ndarray, k: int) -> Any:
    return take(x, np.argsort(x, axis=-1, kind="stable")[..., :k])


def higher_index_first(x: np.ndarray, k: int) -> Any:
    return take(x, np.argsort(x, axis=-1, kind="stable")[..., ::-1][..., :k])


def ascending(x: np.ndarray, k: int) -> Any:
    return take(x, np.argsort(-x, axis=-1, kind="stable")[..., :k][..., ::-1])


def loses_nan(x: np.ndarray, k: int) -> Any:
    return take(x, np.argsort(-x, axis=-1, kind="stable")[..., :k])


def all_indices_zero(x: np.ndarray, k: int) -> Any:
    values, order = loses_nan(x, k)
    return values, 0 * order


def sorts_in_place(x: np.ndarray, k: int) -> Any:
    result = loses_nan(x, k)
    x.sort(axis=-1)
    return result


@pytest.mark.parametrize(
    ("wrong", "caught_by", "passes"),
    [
        (smallest, "values", "indices"),
        (ascending, "values", "indices"),
        (higher_index_first, "ties", "values"),
        (loses_nan, "nan_first", "infinities"),
        (all_indices_zero, "indices", "values"),
        (sorts_in_place, "inputs_unchanged", "ties"),
    ],
)
def test_a_wrong_selection_is_caught_by_the_property_that_should(
    wrong: Any, caught_by: str, passes: str
) -> None:
    report = check_topk(wrong, only=[caught_by, passes])
    assert report.names("failed") == [caught_by], str(report)
    assert report[caught_by].example.x.size <= 3


def test_a_property_may_be_refused_or_not_apply() -> None:
    def strict(x: np.ndarray, k: int) -> Any:
        if k > x.shape[-1]:
            raise ValueError("k is too large")
        return loses_nan(x, k)

    report = check_topk(strict, only=["beyond_all", "axis"])
    assert report.names("not applicable") == ["beyond_all", "axis"]
    assert report["beyond_all"].message == "raised ValueError: k is too large"


def test_what_is_no_selection_cannot_be_checked() -> None:
    with pytest.raises(CannotCheck, match="no pair"):
        check_topk(lambda x, k: x)


def test_the_command_checks_it(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", "topk_np:top_k", "--kind", "topk", "--examples", "5"]
    assert main(command) == 0
    assert "PASSED (9 passed, 0 failed, 0 not applicable)" in capsys.readouterr().out
