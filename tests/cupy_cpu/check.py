"""
Check the CPU build of CuPy where it is installed: python check.py.  Exits 1 if a check fails.

Results are compared with NumPy's. Checks named "loud" want an error, as the alternative is garbage
that goes unnoticed. The package's own suite tests far more, but only what the package uses.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cupy as cp
import cupy_cpu
import cupyx
import numpy as np
from cupyx.scipy import special

KERNELS = r"""
template <typename T, int THREADS>
__global__ void row_sum(const T* __restrict__ x, int n, T* __restrict__ out) {
  __shared__ T part[THREADS / 32];
  T sum = 0;
  for (int i = threadIdx.x; i < n; i += THREADS) sum += x[(long long)blockIdx.x * n + i];
  for (int offset = 16; offset; offset >>= 1) sum += __shfl_down_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < THREADS / 32; warp++) sum += part[warp];
  out[blockIdx.x] = sum;
}
extern "C" {
__global__ void histogram(const int* x, int n, int bins, int* out) {
  extern __shared__ int own[];
  for (int b = threadIdx.x; b < bins; b += blockDim.x) own[b] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) atomicAdd(&own[x[i]], 1);
  __syncthreads();
  for (int b = threadIdx.x; b < bins; b += blockDim.x) out[b] = own[b];
}
__global__ void no_barrier(int* out) {
  __shared__ int lanes[64];
  lanes[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = lanes[63 - threadIdx.x];
}
__global__ void split_barrier() {
  if (threadIdx.x < 32) __syncthreads();
  else __syncthreads();
}
__global__ void stuck_warp(int* x) {
  if (threadIdx.x < 8) x[0] = __shfl_sync(~0u, x[0], 0);
  else __syncthreads();
}
__global__ void too_far(float* x) { x[1LL << 40] = 1; }
}
"""
# What runs with an unmapped page behind every array.
GUARDED = """
import cupy, numpy
code = 'extern "C" __global__ void reads(float* x, int i) { x[0] = x[i]; }'
reads, x = cupy.RawKernel(code, 'reads'), cupy.zeros(1024, 'f4')
reads((1,), (1,), (x, numpy.int32(1023)))
try:
    reads((1,), (1,), (x, numpy.int32(1024)))
except cupy.cuda.driver.CUDADriverError:
    print('past the end')
"""

LaunchError = cp.cuda.driver.CUDADriverError
failures: list[str] = []


def check(name: str, run: Callable[[], Any], expected: Any, tolerance: float = 0) -> None:
    """Run; compare with what is expected, exactly unless there is a tolerance."""
    try:
        found = cp.asnumpy(run())
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    except Exception as error:
        failures.append(name)
        print(f"FAILED {name}: {error}")


def loud(name: str, run: Callable[[], Any], *errors: type[Exception]) -> None:
    """Run; want one of the errors."""
    try:
        found = run()
    except errors:
        return
    except Exception as error:
        found = repr(error)
    failures.append(name)
    print(f"FAILED loud: {name}: {found!r}")


def array_functions() -> None:
    """What CuPy computes by kernels that it generates, by cuBLAS and by thrust."""
    rng = np.random.default_rng(0)
    for dtype, tolerance in (("f2", 2e-2), ("f4", 1e-5), ("f8", 1e-12)):
        x = rng.standard_normal((2, 33, 70)).astype(dtype)
        y = cp.asarray(x)
        order = np.argsort(x, axis=-1, kind="stable")
        check(f"exp {dtype}", lambda x=x, y=y: cp.exp(y), np.exp(x), tolerance)
        for axis in (None, 0, 1, 2):
            wide = x.astype("f8").sum(axis)
            check(f"sum {axis} {dtype}", lambda y=y, a=axis: y.sum(a, dtype="f8"), wide, 1e-10)
            check(f"max {axis} {dtype}", lambda y=y, a=axis: y.max(a), x.max(axis))
        product = x.astype("f8") @ x.astype("f8").mT
        check(f"matmul {dtype}", lambda y=y: y @ y.swapaxes(1, 2), product, 100 * tolerance)
        check(f"argsort {dtype}", lambda y=y: cp.argsort(y, axis=-1), order)
        best = order[..., :8]
        check(
            f"take_along_axis {dtype}",
            lambda y=y, best=best: cp.take_along_axis(y, cp.asarray(best), -1),
            np.take_along_axis(x, best, -1),
        )
        check(f"mask {dtype}", lambda y=y: y[y > 1], x[x > 1])
    check("rounding to float16", lambda: cp.asarray([65519, 65520.0]).astype("f2"), [65504, np.inf])
    check("NaN last", lambda: cp.sort(cp.asarray([np.nan, 1, -np.inf])), [-np.inf, 1, np.nan])
    check("erf", lambda: special.erf(cp.asarray([0, 0.5])), [0, 0.5204998778130465], 1e-12)
    total = cp.zeros(3)
    cupyx.scatter_add(total, cp.asarray([1, 1, 2]), cp.asarray([1.0, 2.0, 3.0]))
    check("scatter_add", lambda: total, [0, 3, 3])


def own_kernels() -> None:
    """Kernels of one's own, in several orders of their threads."""
    module = cp.RawModule(
        code=KERNELS, options=("--std=c++17",), name_expressions=["row_sum<float, 256>"]
    )

    def launch(
        name: str, *arguments: Any, rows: int = 1, threads: int = 64, shared: int = 0
    ) -> Any:
        module.get_function(name)((rows,), (threads,), arguments, shared_mem=shared)
        return arguments[-1] if arguments else None

    rng = np.random.default_rng(1)
    x, bins = rng.standard_normal((6, 1000)).astype("f4"), rng.integers(0, 37, 5000, "i4")
    unordered = set()
    for order in range(4):
        with cupy_cpu.thread_order(order):
            check(
                f"row_sum, order {order}",
                lambda: launch(
                    "row_sum<float, 256>",
                    *(cp.asarray(x), np.int32(1000), cp.empty(6, "f4")),
                    rows=6,
                    threads=256,
                ),
                x.sum(1),
                1e-3,
            )
            check(
                f"histogram, order {order}",
                lambda: launch(
                    "histogram",
                    *(cp.asarray(bins), np.int32(5000), np.int32(37), cp.empty(37, "i4")),
                    shared=37 * 4,
                ),
                np.bincount(bins, minlength=37),
            )
            unordered.add(launch("no_barrier", cp.zeros(64, "i4")).get().tobytes())
    check("a missing barrier shows", lambda: len(unordered) > 1, True)
    loud("two barriers in one block", lambda: launch("split_barrier"), LaunchError)
    loud("lanes miss a shuffle", lambda: launch("stuck_warp", cp.zeros(1, "i4")), LaunchError)
    loud("address off the map", lambda: launch("too_far", cp.zeros(4, "f4")), LaunchError)
    loud("too few arguments", lambda: launch("histogram", cp.zeros(4, "i4")), TypeError)
    loud(
        "no such name",
        lambda: cp.RawKernel('extern "C" __global__ void f(float* x) { x[0] = y; }', "f").compile(),
        cp.cuda.compiler.CompileException,
    )


def refusals() -> None:
    """What is no part of this build, or of CuPy: an error that says so, never a wrong number."""
    one = cp.ones((2, 2))
    loud("NumPy and CuPy mixed", lambda: one + np.ones((2, 2)), TypeError)
    loud("an inverse", lambda: cp.linalg.inv(one), RuntimeError)  # no cuSOLVER
    loud("a Fourier transform", lambda: cp.fft.fft(one), RuntimeError)  # no cuFFT
    # CUB is code for the device alone: whoever asks for it by name is told that it is not there.
    accelerate = cp._core.set_reduction_accelerators
    loud("CUB", lambda: accelerate(["cub"]), NotImplementedError)
    loud("a second device", lambda: cp.cuda.Device(1).use(), cp.cuda.runtime.CUDARuntimeError)
    guarded = subprocess.run(
        [sys.executable, "-c", GUARDED],
        env={**os.environ, "CUPY_CPU_GUARD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    check("guard", lambda: guarded.stdout == "past the end\n", True)


if __name__ == "__main__":
    check("it is the CPU build", lambda: cp.__version__.endswith("+cpu"), True)
    array_functions()
    own_kernels()
    refusals()
    sys.exit(f"{len(failures)} checks failed" if failures else None)
