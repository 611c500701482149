"""The attention matrix as a sparse array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from tests.backends import NUMPY, Backend
from tests.strategies import AttentionProblem, attention_with_options
from topk_np import topk_attention, topk_attention_fwd
from topk_np.diagnostics import attention_csr

RNG = np.random.default_rng(0)
QUERY, KEY = RNG.standard_normal((2, 3, 5, 4)), RNG.standard_normal((3, 7, 4))


@given(problem=attention_with_options())
def test_the_sparse_matrix_times_the_values_is_the_output_without_dropout(
    problem: AttentionProblem,
) -> None:
    inputs, options, _ = problem.on(NUMPY)
    _, residuals = topk_attention_fwd(*inputs, **options)
    out = topk_attention(*inputs, **{**options, "dropout": None})
    value = np.broadcast_to(problem.value, (*problem.lead, *problem.value.shape[-2:]))
    for head in np.ndindex(problem.lead):
        matrix = attention_csr(residuals, head=head)
        assert matrix.shape == (problem.queries, problem.keys)
        assert np.all(np.diff(matrix.indptr) == (residuals.indices[head] >= 0).sum(axis=1))
        np.testing.assert_allclose(matrix @ value[head], out[head], atol=1e-12 * problem.size)


@pytest.mark.usefixtures("without_cusparse")
def test_the_sparse_matrix_is_one_of_the_library_of_the_residuals(xp: Backend) -> None:
    inputs = xp.arrays(QUERY, KEY, KEY)
    _, residuals = topk_attention_fwd(*inputs, k=2)
    if xp.name not in ("numpy", "cupy"):
        with pytest.raises(TypeError, match=r"must be of NumPy or CuPy arrays, got array_api_"):
            attention_csr(residuals, head=(1, 2))
        return
    matrix = attention_csr(residuals, head=(1, 2))
    here = attention_csr(topk_attention_fwd(QUERY, KEY, KEY, k=2)[1], head=(1, 2))
    assert matrix.shape == here.shape == (5, 7)
    for name in ("data", "indices", "indptr"):
        array = getattr(matrix, name)
        assert isinstance(array, type(inputs[0]))
        np.testing.assert_allclose(xp.to_numpy(array), getattr(here, name), rtol=1e-12)


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        ((), ValueError, r"a place in the leading axes \(2, 3\), got \(\)"),
        ((0,), ValueError, r"a place in the leading axes \(2, 3\), got \(0,\)"),
        ((0, 3), ValueError, r"a place in the leading axes \(2, 3\), got \(0, 3\)"),
        ((-3, 0), ValueError, r"a place in the leading axes \(2, 3\), got \(-3, 0\)"),
        ((0, 0, 0), ValueError, r"a place in the leading axes \(2, 3\), got \(0, 0, 0\)"),
        (1, TypeError, "head must be a tuple of integers, got int"),
        ((0, 1.0), TypeError, r"head's index must be an integer, got 1.0"),
    ],
)
def test_a_sparse_matrix_is_that_of_one_head(
    head: Any, error: type[Exception], message: str
) -> None:
    _, residuals = topk_attention_fwd(QUERY, KEY, KEY, k=2)
    with pytest.raises(error, match=message):
        attention_csr(residuals, head=head)


def test_a_sparse_matrix_needs_residuals() -> None:
    with pytest.raises(TypeError, match="residuals must come from topk_attention_fwd, got tuple"):
        attention_csr(())  # type: ignore[arg-type]
