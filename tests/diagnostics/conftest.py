"""What sparse matrices need on CuPy's CPU build."""

from __future__ import annotations

import pytest

from tests.backends import Backend


@pytest.fixture
def without_cusparse(xp: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Let CuPy's CPU build make sparse matrices.

    It has no cuSPARSE, of which every sparse matrix holds a descriptor, used by products only.
    """
    if xp.name == "cupy" and xp.xp.__version__.endswith("+cpu"):
        monkeypatch.setattr("cupyx.cusparse.MatDescriptor.create", lambda: None)
