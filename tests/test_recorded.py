"""Results are what they were when `tests/data/recorded.npz` was written: see `tests.recorded`."""

from __future__ import annotations

import pytest

from tests.recorded import complaints, read
from tests.recorded_problems import DTYPES, FUNCTIONS, function_of, make_problem
from tests.recorded_runs import run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_results_are_those_that_were_recorded(function: str, dtype: str) -> None:
    differences = []
    for number, recorded in enumerate(read(dtype)):
        if function_of(number) != function:
            continue
        problem = make_problem(dtype, number, recorded.attempt)
        found = [*complaints(run(problem), recorded)]
        if found:
            differences.append(f"{problem}\n    " + "\n    ".join(found))
    assert not differences, f"{len(differences)} problems differ:\n" + "\n".join(differences)
