"""
Runs of the problems of `tests.recorded`, and a check that their rounding errors are small.

The tolerances are a few rounding errors wide, and a draw whose sums cancel can exceed them with
another order of the additions. Such draws are found here by rounding in several ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import topk_np
from tests.recorded_problems import Problem

TOLERANCES = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 1e-6, "float64": 1e-12}
"""Of each array: the largest difference, as a share of the largest value."""
STEADY = 0.75  # of the tolerance, how near results must be to those in float64

Results = dict[str, np.ndarray]


def run(problem: Problem, **more: Any) -> Results:
    """The output, from both forms of the call, the indices and the gradients, by name."""
    function = getattr(topk_np, problem.function)
    forward = getattr(topk_np, f"{problem.function}_fwd")
    backward = getattr(topk_np, f"{problem.function}_bwd")
    options = {**problem.options, **more}
    out, residuals = forward(*problem.inputs, **options)
    again = function(*problem.inputs, **options)
    grads = backward(residuals, problem.dout)
    results: Results = {}
    if isinstance(out, tuple):
        results |= {"out": out[0], "lse": out[1], "out alone": again[0], "lse alone": again[1]}
    else:
        results |= {"out": out, "out alone": again}
    results |= {f"d{name}": grad for name, grad in grads._asdict().items() if grad is not None}
    if problem.function.startswith("topk"):
        results["indices"] = residuals.indices
    return results


def stored(results: Results) -> Results:
    """The arrays of which numbers are stored; those of the plain call must equal the others."""
    return {name: array for name, array in results.items() if not name.endswith(("alone", "ices"))}


def tolerance(array: np.ndarray) -> float:
    """The tolerance of an array, by its own dtype: log-sum-exps of half precision are float32."""
    return TOLERANCES[array.dtype.name]


def largest_of(array: np.ndarray) -> float:
    """The largest finite value by size."""
    wide = array.astype(np.float64)
    return float(np.max(np.abs(wide), initial=0, where=np.isfinite(wide)))


def in_float64(problem: Problem) -> Results:
    """The results of the same inputs in float64."""
    return run(problem if problem.dtype == "float64" else _cast(problem, "float64"))


def is_steady(problem: Problem, results: Results, wide: Results) -> bool:
    """Return whether results stay near those in float64 however they are rounded."""
    if problem.dtype == "float64":
        # Those in float32 tell what is nothing but rounding; they may keep other keys.
        narrow = run(_cast(problem, "float32"))
        if not _same_keys(narrow, wide):
            return True
        return all(_near(narrow[name], array, 1e-3) for name, array in stored(wide).items())
    return all(
        _same_keys(way, truth)
        and all(
            _near(array, truth[name], STEADY * tolerance(array))
            for name, array in stored(way).items()
        )
        for way, truth in _ways(problem, results, wide)
    )


def _ways(problem: Problem, results: Results, wide: Results) -> Iterator[tuple[Results, Results]]:
    """Results rounded in several ways, each with its counterpart in float64."""
    yield results, wide
    for other in (_reversed(problem), _times(problem, 3), _times(problem, 1.75)):
        yield run(other), in_float64(other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPK_NP_KERNELS", "portable")
        portable = run(problem)
    yield portable, wide


def _same_keys(one: Results, other: Results) -> bool:
    """Return whether the same keys are kept."""
    return np.array_equal(one.get("indices", 0), other.get("indices", 0))


def _near(array: np.ndarray, wide: np.ndarray, share: float) -> bool:
    """Return whether two arrays differ by at most this share of the largest value."""
    if not np.array_equal(np.isfinite(array), np.isfinite(wide)):
        return False
    gap = largest_of(np.nan_to_num(array.astype(np.float64)) - np.nan_to_num(wide))
    return gap <= share * largest_of(wide)


def _reversed(problem: Problem) -> Problem:
    """The problem with the columns of queries and keys in the opposite order."""
    first, second, third = problem.inputs
    options = dict(problem.options)
    if "gate" in options:
        options["gate"] = options["gate"][..., ::-1]
    return replace(problem, inputs=(first[..., ::-1], second[..., ::-1], third), options=options)


def _times(problem: Problem, factor: float) -> Problem:
    """The problem with larger gradients, which are rounded otherwise."""

    def times(array: np.ndarray) -> np.ndarray:
        return (array.astype(np.float64) * factor).astype(array.dtype)

    dout = problem.dout
    return replace(
        problem, dout=tuple(map(times, dout)) if isinstance(dout, tuple) else times(dout)
    )


def _cast(problem: Problem, dtype: str) -> Problem:
    """The same numbers in another dtype."""

    def cast(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(cast, value))
        if isinstance(value, topk_np.T5Bias):
            return topk_np.T5Bias(cast(value.table), value.bidirectional, value.max_distance)
        floating = isinstance(value, np.ndarray) and (
            value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16
        )
        return value.astype(dtype) if floating else value

    options = {name: cast(value) for name, value in problem.options.items()}
    inputs, dout = cast(problem.inputs), cast(problem.dout)
    return replace(problem, dtype=dtype, inputs=inputs, options=options, dout=dout)
