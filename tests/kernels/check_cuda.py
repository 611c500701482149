"""
Compile all CUDA kernels with NVIDIA's own compiler, which needs no GPU: make check-cuda.

Fails if one does not compile, spills registers or takes more shared memory than every GPU has.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from topk_np.kernels import cuda

CHECK = Path(__file__).parent.parent / "cupy_cpu" / "kernel_shim" / "nvrtc_check.py"
MOST_SHARED = 48 * 2**10  # bytes a block has on every GPU
OPTIONS = (*cuda.OPTIONS, "-ftz=true")  # the second is CuPy's own


def check(source: str, kernels: tuple[str, ...], *options: str) -> subprocess.CompletedProcess[str]:
    """Compile kernels for sm_80 and sm_90; the exit code is 0 if all is well."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels.cu")
        path.write_text(source)
        command = [sys.executable, str(CHECK), str(path), *(f"-e{name}" for name in kernels)]
        limits = ["--no-spills", f"--max-shared={MOST_SHARED}"]
        return subprocess.run(
            [*command, *limits, *OPTIONS, *options], capture_output=True, text=True
        )


if __name__ == "__main__":
    checked = check(cuda.source(), cuda.instances())
    print(checked.stdout, checked.stderr, sep="", end="")
    sys.exit(checked.returncode)
