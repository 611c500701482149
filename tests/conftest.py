"""Hypothesis profiles and the fixture that runs a test on every array library."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings

from tests.backends import Backend, selected_backends

_QUIET = [HealthCheck.too_slow, HealthCheck.differing_executors]
settings.register_profile("dev", max_examples=12, deadline=None, suppress_health_check=_QUIET)
settings.register_profile(
    "ci", max_examples=40, deadline=None, derandomize=True, suppress_health_check=_QUIET
)
settings.register_profile(
    "thorough",
    max_examples=1000,
    deadline=timedelta(minutes=1),
    suppress_health_check=_QUIET,
)
settings.load_profile(os.environ.get("TOPK_NP_PROFILE", "dev"))


@pytest.fixture(scope="session", params=selected_backends(), ids=repr)
def xp(request: pytest.FixtureRequest) -> Backend:
    """Each array library in turn."""
    backend: Backend = request.param
    return backend
