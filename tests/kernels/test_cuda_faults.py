"""Faults planted in the CUDA kernels are found by the cases that the kernels pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.cuda_cases import Case, Launch, hide_outside, select, softmax, softmax_vjp
from tests.kernels.cuda_products import (
    add_slots,
    gather_matmul,
    masked_matmul,
    sampled_matmul,
    scatter_matmul,
    take_slots,
)
from tests.kernels.cuda_program import LaunchError, Program, build
from topk_np.kernels import cuda

SOURCE = cuda.source()
# The most cases that are drawn to find a fault: the intact kernels pass more.
TRIES = {"fibers": 300, "tsan": 6, "asan": 20}
SIGNS = {"fibers": "", "tsan": "data race", "asan": "AddressSanitizer"}  # of the right error


@dataclass(frozen=True)
class Fault:
    """A change to the source, and what shall find it."""

    name: str
    source: str
    kernel: str
    case: Case
    mode: str

    @property
    def namespace(self) -> str:
        return re.sub(r"\W", "_", self.name)


def kernel_of(case: Case) -> str:
    """The instance that a case runs by default."""
    if case is take_slots:
        return cuda.instance_for_bits("take_slots", 4)
    formats = ["float32"] * (2 if case in (gather_matmul, sampled_matmul) else 1)
    return cuda.instance(case.__name__, *formats)


def fault(name: str, old: str, new: str, case: Case, mode: str = "fibers") -> Fault:
    assert SOURCE.count(old) == 1, f"{name}: found in {SOURCE.count(old)} places"
    source = SOURCE.replace(old, new)
    return Fault(name, source, kernel_of(case), case, mode)


def without_barriers(file: str, case: Case) -> list[Fault]:
    """For each barrier of a file, the source without it, which must be a race."""
    begin = SOURCE.index(f'"{file}"')
    end = SOURCE.find("#line", begin) % len(SOURCE)
    places = [m.span() for m in re.compile(r"__syncthreads\(\);").finditer(SOURCE, begin, end)]
    assert places
    return [
        Fault(f"{file} without barrier {i}", SOURCE[:a] + SOURCE[b:], kernel_of(case), case, "tsan")
        for i, (a, b) in enumerate(places)
    ]


FAULTS = [
    fault("ties: one too many", "tied_before < cut.ties", "tied_before <= cut.ties", select),
    fault("scan skips a lane", "if (lane >= step) through", "if (lane > step) through", select),
    fault("digit off by one", "needed <= above + count", "needed < above + count", select),
    fault("NaN not above all", "if (size > Format<T>::INF)", "if (false)", select),
    fault("zeros differ", "if (size == 0) return SIGN;", "", select),
    fault("-inf taken", "rank > row.bar(column) &&", "rank >= row.bar(column) &&", select),
    fault("floor before k are known", "kept == k && floors", "kept && floors", select),
    fault("floor of another row", "floors[i] :", "floors[0] :", select),
    fault("floor too high", "floors[i] = cut.rank", "floors[i] = cut.rank + 1", select),
    fault("floor for the best", "column < kept ? lowest() : floor", "floor", select),
    fault("whole digit cut short", "(Bits)(prefix - 1), 0", "prefix, 0", select),
    fault("whole digit below the floor", "pick.whole && prefix > row.floor", "pick.whole", select),
    fault("unused slots left", "indices[slot] = -1;", "", select),
    fault("start forgotten", "(int)(start + column - kept)", "(int)(column - kept)", select),
    fault("best of another row", "best_values + i * kept", "best_values", select),
    fault("places start anew", "places[slot] = (int)column", "places[slot] = 0", select),
    fault("leader adds one", "__popc(peers));", "1);", select),
    fault("stretches overlap", "begin + stretch);", "begin + stretch + 1);", select),
    fault(
        "histogram not atomic",
        "atomicAdd(&histogram[digit], __popc(peers));",
        "histogram[digit] += __popc(peers);",
        select,
        "tsan",
    ),
    fault(
        "row read past its end",
        "column < row.columns ? rank_of<T>(row.bits(column)) : 0",
        "rank_of<T>(row.bits(column))",
        select,
        "asan",
    ),
    *without_barriers("select.cu", select),
    fault(
        "unused slots multiplied",
        "end = first + used_slots(indices + first, k)",
        "end = first + k",
        gather_matmul,
        "asan",
    ),
    fault(
        "columns not strided",
        "(i - row * width) * value_column;\n    T sum = 0;\n#pragma",
        "(i - row * width);\n    T sum = 0;\n#pragma",
        gather_matmul,
    ),
    fault(
        "bisection of slots", "if (indices[middle] < 0)", "if (indices[middle] <= 0)", gather_matmul
    ),
    fault("head of a row", "row / rows * value_head", "0", gather_matmul),
    fault(
        "half the lanes summed",
        "sum += __shfl_down_sync(ALL_LANES, sum, step);",
        "sum += step > 8 ? 0 : __shfl_down_sync(ALL_LANES, sum, step);",
        sampled_matmul,
    ),
    fault(
        "unused slots sampled",
        "if (indices[i] >= 0) {",
        "if (true) {",
        sampled_matmul,
        "asan",
    ),
    fault("sum replaces", "*total += sum", "*total = sum", scatter_matmul),
    fault("fresh is read", "if (fresh)", "if (false)", scatter_matmul),
    fault("fresh is left", "if (fresh)", "if (fresh && found)", scatter_matmul),
    fault("pairs of the first head", "i64 low = head * pairs", "i64 low = 0", scatter_matmul),
    fault(
        "rows of the stack",
        "(pair / k - head * rows) * right_row",
        "pair / k * right_row",
        scatter_matmul,
        "asan",
    ),
    fault(
        "bisection off by one",
        "indices[order[middle]] < index",
        "indices[order[middle]] <= index",
        scatter_matmul,
    ),
    fault(
        "range ignored",
        "const int index = (int)(first + row)",
        "const int index = (int)row",
        scatter_matmul,
    ),
    fault("-1 added to", "    if (indices[i] >= 0)\n", "", add_slots, "asan"),
    fault("NaN hidden added", "if (score[", "if (true || score[", masked_matmul),
    fault(
        "finite summed anew", "&& out[i] > -infinite) continue", "&& false) continue", masked_matmul
    ),
    fault("minus inf is left", "&& out[i] > -infinite", "", masked_matmul),
    fault("band of the first head", "first = edges[head]", "first = edges[0]", hide_outside),
    fault("band ends early", "last + i + 1", "last + i", hide_outside),
    fault(
        "band ends before the row",
        "max(begin, min(columns, last + i + 1))",
        "min(columns, last + i + 1)",
        hide_outside,
    ),
    fault("unused slot read", "else if (place >= 0)", "else", take_slots, "asan"),
    fault("places before kept", "if (place >= kept)", "if (place >= 0)", take_slots, "asan"),
    *without_barriers("softmax.cu", softmax_vjp),
    fault("masked row is NaN", "if (largest == lowest) largest = 0;", "", softmax),
    fault("not divided", "exp(own[i] - largest) / sum", "exp(own[i] - largest)", softmax),
    fault("vjp without the sum", "(given[i] - sum)", "given[i]", softmax_vjp),
]


@pytest.fixture(scope="module")
def built(compiler: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The program of all faults that a mode shall find, each in a namespace of its own."""

    @cache
    def build_mode(mode: str) -> Path:
        faults = [fault for fault in FAULTS if fault.mode == mode]
        source = "".join(f"namespace {f.namespace} {{\n{f.source}\n}}\n" for f in faults)
        kernels = [f"{f.namespace}::{f.kernel}" for f in faults]
        # The program itself uses a name or two.
        source += "using i64 = long long;\n"
        return build(tmp_path_factory.mktemp(mode), source, kernels, mode)

    return build_mode


def find(fault: Fault, program: Program) -> None:
    """Draw cases until one fails."""
    rng = np.random.default_rng(0)
    threads = 96 if fault.mode == "fibers" else 64
    for i in range(TRIES[fault.mode]):
        launch = Launch(blocks=1 + i % 2, threads=threads, order=i % 4, longest=150)
        fault.case(program, rng, launch)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_faults_are_found(built: Callable[[str], Path], fault: Fault) -> None:
    with (
        Program(built(fault.mode), f"{fault.namespace}::") as program,
        pytest.raises((AssertionError, LaunchError)) as found,
    ):
        find(fault, program)
    assert SIGNS[fault.mode] in str(found.value)
    assert "error 1:" not in str(found.value)  # it did start
