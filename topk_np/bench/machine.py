"""What the benchmark ran on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

from topk_np import __version__
from topk_np.schedule.threads import available_cores

Machine = dict[str, Any]

BLAS_SETTINGS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
GIBI = 2**30


def describe_machine() -> Machine:
    """CPU, cores, memory, versions and date; no names of hosts or folders."""
    return {
        "cpu": _cpu(),
        "cores": available_cores(),
        "memory_gib": round(total_memory() / GIBI, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "topk_np": __version__,
        **{package: _version(package) for package in ("numpy", "scipy", "torch")},
        "blas": _blas(),
        "blas_settings": {name: os.environ[name] for name in BLAS_SETTINGS if name in os.environ},
        "date": datetime.now(UTC).date().isoformat(),
    }


def total_memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu() -> str:
    """The CPU's model, as Linux names it where this is Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _blas() -> list[str]:
    """Each BLAS that is loaded, such as "openblas 0.3.30, SkylakeX, 2 threads"."""
    return sorted(
        {
            f"{library['internal_api']} {library['version']}, "
            f"{library.get('architecture', 'unknown architecture')}, "
            f"{library['num_threads']} threads"
            for library in threadpool_info()
            if library["user_api"] == "blas"
        }
    )


def _version(package: str) -> str | None:
    """The version that is installed, if any."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
