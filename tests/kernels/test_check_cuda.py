"""The kernels compile for GPUs, and the check that says so can fail."""

from __future__ import annotations

from importlib.metadata import distributions

import pytest

from tests.kernels.check_cuda import check
from topk_np.kernels import cuda

# NVIDIA publishes its compiler for Linux and Windows alone, so it is an extra. `.ci/run` installs
# it before the tests, so that they run there.
pytestmark = pytest.mark.skipif(
    not any(found.name.startswith("nvidia-cuda-nvrtc") for found in distributions()),
    reason="NVIDIA's compiler is not installed: make check-cuda",
)
TAKE = ("take_slots<unsigned int>",)


def test_all_kernels_compile_for_both_architectures_without_a_warning() -> None:
    checked = check(cuda.source(), cuda.instances())
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for_sm_80, for_sm_90 = checked.stdout.split("sm_90:")
    for name in cuda.instances():
        assert name in for_sm_80
        assert name in for_sm_90
    assert "warning" not in checked.stdout


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ("#include <vector>", (), "does not compile"),  # as g++ would not mind
        ("int unused() { int nothing; }", (), "does not compile"),  # host code
        ("", ("--maxrregcount=16",), "over the limit"),  # spills
        ("", ("--max-shared=100",), "over the limit"),
    ],
)
def test_the_check_fails_where_a_gpu_would(
    more: str, options: tuple[str, ...], message: str
) -> None:
    checked = check(cuda.source() + more, (*TAKE, "select<double>"), *options)
    assert checked.returncode == 1
    assert message in checked.stdout


def test_a_kernel_of_another_name_is_an_error() -> None:
    checked = check(cuda.source(), ("take_slots<no_such_type>",))
    assert checked.returncode != 0
