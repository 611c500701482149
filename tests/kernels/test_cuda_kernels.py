"""The CUDA kernels give what NumPy gives, in any order of threads and at any launch shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels import cuda_cases, cuda_products
from tests.kernels.cuda_cases import BITS, Case, Launch
from tests.kernels.cuda_program import LaunchError, Program, build
from tests.strategies import seeds
from topk_np.kernels import cuda

launches = st.builds(
    Launch,
    blocks=st.integers(1, 3),
    threads=st.sampled_from([32, 64, 96, 256]),
    order=st.integers(0, 5),
)
many = settings(max_examples=200)  # for each kernel and format; one takes 1 to 2 ms
OPERANDS = [
    ("float32", "float32"),
    ("float64", "float64"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
]
FORMATS = ("float32", "float64")
CASES: dict[Case, list[tuple[object, ...]]] = {
    cuda_cases.select: [(dtype,) for dtype in BITS],
    cuda_cases.hide_outside: [(dtype,) for dtype in FORMATS],
    cuda_products.gather_matmul: [*OPERANDS],
    cuda_products.sampled_matmul: [*OPERANDS],
    cuda_products.scatter_matmul: [
        (dtype, kernel)
        for dtype in FORMATS
        for kernel in ("scatter_matmul", "scatter_matmul_atomic")
    ],
    cuda_products.take_slots: [(1,), (2,), (4,), (8,)],
    cuda_products.add_slots: [(dtype,) for dtype in FORMATS],
    cuda_products.masked_matmul: [(dtype,) for dtype in FORMATS],
    cuda_cases.softmax: [(dtype,) for dtype in FORMATS],
    cuda_cases.softmax_vjp: [(dtype,) for dtype in FORMATS],
}
"""What each kernel is tried on, and the formats."""


@pytest.mark.parametrize(
    ("case", "formats"),
    [
        pytest.param(case, formats, id="-".join(map(str, (case.__name__, *formats))))
        for case, several in CASES.items()
        for formats in several
    ],
)
@many
@given(seed=seeds, launch=launches)
def test_a_kernel_gives_what_numpy_gives(
    program: Program, case: Case, formats: tuple[object, ...], seed: int, launch: Launch
) -> None:
    case(program, np.random.default_rng(seed), launch, *formats)


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 1023, 1024, 1025, 5000])
def test_select_takes_the_k_best_at_the_edges_of_warps_and_blocks(
    program: Program, columns: int
) -> None:
    rng = np.random.default_rng(columns)
    scores = rng.integers(0, 50, (2, columns)).astype(np.float32)
    for k in sorted({1, min(32, columns), max(1, columns - 1), columns}):
        room = np.empty((2, k), np.uint32), np.empty((2, k), np.int32)
        given = (scores.view(np.uint32), 2, columns, 0, 0, 0, 0, 0, k, *room, 0)
        found = program.launch("select<float>", *given, threads=512)
        expected = np.lexsort((np.arange(columns) + 0 * scores, -scores))[:, :k]
        np.testing.assert_array_equal(found[-1], np.sort(expected, axis=1))


def test_every_number_of_half_precision_is_widened_exactly(program: Program) -> None:
    bits = np.arange(2**16).astype(np.uint16)
    ones, each = np.ones((2**16, 1), np.float32), np.arange(2**16, dtype=np.int32)[:, None]
    for stored in ("float16", "bfloat16"):
        kernel = cuda.instance("gather_matmul", "float32", stored)
        given = (ones, each, bits, 0, 1, 1, 1, 2**16, 1, 1, ones * 0)
        widened = program.launch(kernel, *given, blocks=64, threads=256)[-1][:, 0]
        np.testing.assert_array_equal(widened, cuda_cases.from_bits(bits, stored))


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_sorted_scatter_is_bit_for_bit_the_same_in_any_launch(
    program: Program, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    weights, right = (rng.normal(size=(2, 40, size)).astype(dtype) for size in (3, 5))
    indices = np.sort(rng.integers(0, 4, weights.shape), axis=2).astype(np.int32)
    order = cuda_products.sorted_pairs(indices)
    room = np.zeros((2, 4, 5), dtype)
    given = (weights, indices, order, right, 200, 5, 1, *weights.shape, 5, 0, 4, 0, room, 20, 5, 1)
    kernel = cuda.instance("scatter_matmul", dtype)
    first, *others = (
        program.launch(kernel, *given, blocks=blocks, order=order)[-1]
        for blocks in (1, 2, 5)
        for order in range(4)
    )
    assert len(np.unique(first)) == first.size
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_launch_with_the_wrong_number_of_arguments_is_an_error(program: Program) -> None:
    with pytest.raises(LaunchError, match="softmax<float>: error 1"):
        program.launch("softmax<float>", 1, 2)


FLOAT32 = [name for name in cuda.instances() if "double" not in name and "16" not in name]


@pytest.mark.parametrize(("mode", "times"), [("tsan", 2), ("asan", 10)])
def test_sanitizers_find_no_race_and_nothing_out_of_bounds(
    compiler: None, tmp_path_factory: pytest.TempPathFactory, mode: str, times: int
) -> None:
    path = build(tmp_path_factory.mktemp(mode), kernels=FLOAT32, mode=mode)
    rng = np.random.default_rng(0)
    with Program(path) as program:
        for case in CASES:
            for _ in range(times):
                case(program, rng, Launch(threads=64, longest=150))
