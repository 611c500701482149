"""Hypothesis profiles and the fixture that runs a test on every array library."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.backends import Backend, selected_backends
from topk_np.kernels import tuning

# What cuts small problems into several chunks, blocks of keys, ranges, stacks and threads.
TINY = tuning.Tuning(
    most_queries=4,
    fewest_queries=2,
    block_scores=8,
    few_more=0,
    least_block=2,
    long_block=2,
    most_backward_queries=3,
    fewest_backward_queries=2,
    long_backward_queries=2,
    most_device_queries=4,
    fewest_device_queries=2,
    device_scores=8,
    stack_scores=24,
    short_scores=24,
    worth_threads=0,
    least_range=2,
    product_keys=3,
    short_keys=6,
    gathered_bytes=64,
    cache_bytes=64,
    groups_per_slot=2,
    least_groups=3,
    least_group=2,
    same_place=16,
)

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
        patch.setattr(tuning, "current", TINY)
        yield
