"""Hypothesis profiles and the fixture that runs a test on every array library."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, settings

import topk_np.chunking
import topk_np.gradients
import topk_np.kernels.numpy
import topk_np.kernels.numpy_select
import topk_np.problem
import topk_np.terms
import topk_np.workers
from tests.backends import Backend, selected_backends

# The sizes from which work is cut up, and what they are where small problems shall be cut too.
TINY_PLANS = {
    topk_np.chunking: {
        "MOST_QUERIES": 4,
        "FEWEST_QUERIES": 2,
        "BLOCK_SCORES": 8,
        "FEW_MORE": 0,
        "LEAST_BLOCK": 2,
        "LONG": 2,
        "MOST_DEVICE_QUERIES": 4,
        "FEWEST_DEVICE_QUERIES": 2,
        "DEVICE_SCORES": 8,
        "MOST_BACKWARD_QUERIES": 3,
        "FEWEST_BACKWARD_QUERIES": 2,
        "LONG_BACKWARD_QUERIES": 2,
        "SHORT_SCORES": 24,
        "PACKED_SCORES": 16,
        "WORTH_THREADS": 0,
    },
    topk_np.gradients: {"LEAST_RANGE": 2},
    topk_np.kernels.numpy: {"GATHERED_BYTES": 64, "CACHE_BYTES": 64},
    topk_np.kernels.numpy_select: {
        "GROUPS_PER_SLOT": 2,
        "LEAST_GROUPS": 3,
        "LEAST_GROUP": 2,
        "DENSE_HITS": 3,
    },
    topk_np.problem: {"WORTH_THREADS": 0},
    topk_np.terms: {"DENSE_BLOCK": 3},
    topk_np.workers: {"SAME_PLACE": 16},
}

_QUIET = [HealthCheck.too_slow, HealthCheck.differing_executors]
settings.register_profile("dev", max_examples=8, deadline=None, suppress_health_check=_QUIET)
settings.register_profile(
    "ci", max_examples=20, deadline=None, derandomize=True, suppress_health_check=_QUIET
)
settings.register_profile(
    "thorough",
    max_examples=int(os.environ.get("TOPK_NP_EXAMPLES", "1000")),
    deadline=timedelta(minutes=1),
    suppress_health_check=_QUIET,
)
# For CuPy's CPU build, whose kernels take a while.
settings.register_profile(
    "cupy", max_examples=10, deadline=None, derandomize=True, suppress_health_check=_QUIET
)
# For `make mutants`, which runs a part of the suite hundreds of times: always the same examples.
settings.register_profile(
    "mutants",
    max_examples=6,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=_QUIET,
)
settings.load_profile(os.environ.get("TOPK_NP_PROFILE", "dev"))


@pytest.fixture(scope="session", params=selected_backends(), ids=repr)
def xp(request: pytest.FixtureRequest) -> Backend:
    """Each array library in turn."""
    backend: Backend = request.param
    return backend


@pytest.fixture(scope="session", autouse=True)
def thread_order() -> Iterator[None]:
    """Take CUDA threads in the order TOPK_NP_THREAD_ORDER, where CuPy is its CPU build."""
    order = os.environ.get("TOPK_NP_THREAD_ORDER")
    if order is None:
        yield
        return
    with importlib.import_module("cupy_cpu").thread_order(int(order)):
        yield


@pytest.fixture(scope="module")
def tiny_plans() -> Iterator[None]:
    """Cut small problems into several chunks, blocks of keys, ranges and threads."""
    with pytest.MonkeyPatch.context() as patch:
        for module, constants in TINY_PLANS.items():
            for name, value in constants.items():
                patch.setattr(module, name, value)
        yield
