"""Each engine in turn, and the CUDA kernels compiled for the CPU."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator

import pytest

from tests.kernels.cuda_program import Program, build
from tests.kernels.engines import Engine, engines
from topk_np.kernels import tuning


@pytest.fixture(scope="module", params=engines())
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine with each array library it takes."""
    engine: Engine = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "current", engine.tuning)
        yield engine


@pytest.fixture(scope="session")
def compiler() -> None:
    """
    Skip a test where the kernels cannot be compiled for the CPU.

    kernel_shim compiles with g++, and switches between a block's threads with x86-64 instructions
    and the calling convention of Linux. The continuous integration has both.
    """
    here = platform.system(), platform.machine()
    if shutil.which("g++") is None or here != ("Linux", "x86_64"):
        pytest.skip("CUDA kernels run on the CPU with g++ on x86-64 Linux alone")


@pytest.fixture(scope="session")
def program(compiler: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """All kernels, each block's threads one after the other in a chosen order."""
    with Program(build(tmp_path_factory.mktemp("cuda"))) as running:
        yield running
