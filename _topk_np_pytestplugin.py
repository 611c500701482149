"""
A pytest plugin: what `topk_np.testing` offers, as fixtures.

It is a module of its own, as pytest loads it at every start: it imports nothing else until a test
asks for a fixture, and leaves the package to be measured by coverage. ``-p no:topk_np`` leaves it
out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def check_attention() -> Callable[..., Any]:
    """`topk_np.testing.check_attention`, which fails the test when a property fails."""
    return _failing("check_attention")


@pytest.fixture(scope="session")
def check_ffn() -> Callable[..., Any]:
    """`topk_np.testing.check_ffn`, which fails the test when a property fails."""
    return _failing("check_ffn")


@pytest.fixture(scope="session")
def check_topk() -> Callable[..., Any]:
    """`topk_np.testing.check_topk`, which fails the test when a property fails."""
    return _failing("check_topk")


@pytest.fixture(scope="session")
def check_vjp() -> Callable[..., None]:
    """`topk_np.testing.check_vjp`: a backward pass compared with finite differences."""
    found: Callable[..., None] = _testing().check_vjp
    return found


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """`topk_np.testing.assert_close`: equality up to rounding."""
    found: Callable[..., None] = _testing().assert_close
    return found


def _failing(name: str) -> Callable[..., Any]:
    """A check that returns its report, or fails the test with it."""
    check = getattr(_testing(), name)

    def checked(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        report = check(*args, **kwargs)
        if not report.passed:
            pytest.fail(str(report), pytrace=False)
        return report

    return checked


def _testing() -> Any:
    try:
        import topk_np.testing
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        pytest.fail("hypothesis is missing: pip install 'topk_np[testing]'", pytrace=False)
    return topk_np.testing
