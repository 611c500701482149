"""
The CUDA kernels as a program that runs them on the CPU: see tests/cupy_cpu/kernel_shim.

A process of its own, since a faulty kernel may write anywhere, and sanitizers want one.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np

from topk_np.kernels import cuda

HERE = Path(__file__).parent
COMPILER = HERE.parent / "cupy_cpu" / "kernel_shim" / "cuda_host.py"
TIMEOUT = 60  # seconds that no launch should take
INTEGER = -1


class LaunchError(Exception):
    """What ended a launch: an error of the executor or of a sanitizer."""


def build(
    folder: Path,
    source: str | None = None,
    kernels: Iterable[str] = cuda.instances(),
    mode: str = "fibers",
) -> Path:
    """Compile some of the kernels; `mode` is one of kernel_shim's: fibers, threads, tsan, asan."""
    folder.mkdir(parents=True, exist_ok=True)
    kernel, program = folder / "kernels.cu", folder / f"{mode}.exe"
    kernel.write_text(cuda.source() if source is None else source)
    (folder / "instances.inc").write_text("".join(f"KERNEL({name})\n" for name in kernels))
    command = [sys.executable, COMPILER, kernel, HERE / "program.cpp", "-o", program]
    command += ["--mode", mode]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(ran.stderr)
    return program


class Program:
    """A running program of kernels; a context that ends it."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self._prefix = prefix  # of all kernels' names
        self._errors = path.with_suffix(".log").open("w+")
        command = ["setarch", "-R", str(path)]  # ThreadSanitizer wants addresses that stay
        self._process = subprocess.Popen(
            command if shutil.which("setarch") else command[2:],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"},
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def launch(
        self,
        kernel: str,
        *arguments: np.ndarray | int,
        blocks: int = 2,
        threads: int = 64,
        order: int = 0,
    ) -> list[np.ndarray]:
        """
        Start a kernel; returns its array arguments as it left them.

        `order` 0 runs threads and blocks in ascending order, 1 in descending, n shuffled by n.
        """
        name = (self._prefix + kernel).encode()
        sent = [struct.pack("q", len(name)), name]
        sent.append(struct.pack("4q", blocks, threads, order, len(arguments)))
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                sent += [struct.pack("q", argument.nbytes), argument.tobytes()]
            else:
                sent.append(struct.pack("2q", INTEGER, argument))
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"".join(sent))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        (code,) = struct.unpack("q", self._read(8))
        if code:
            (length,) = struct.unpack("q", self._read(8))
            raise LaunchError(f"{kernel}: error {code}: {self._read(length).decode()}")
        arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        return [
            np.frombuffer(self._read(array.nbytes), array.dtype).reshape(array.shape)
            for array in arrays
        ]

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise self._ended()
        return data

    def _ended(self) -> LaunchError:
        code = self._process.wait(TIMEOUT)
        self._errors.seek(0)
        return LaunchError(f"the program ended with {code}: {self._errors.read()}")
