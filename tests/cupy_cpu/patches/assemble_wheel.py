"""Collect a built CPU tree of CuPy into a wheel: python assemble_wheel.py BUILT_TREE OUT_DIR."""

import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SHIM = HERE.parent / "kernel_shim"
tree, out = map(pathlib.Path, sys.argv[1:3])
version = re.search(r"__version__ = '(.+)'", (tree / "cupy/_version.py").read_text())[1]
tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"

METADATA = f"""Metadata-Version: 2.4
Name: cupy
Version: {version}
Summary: CuPy built to run on the CPU, for tests. Not the real CuPy.
License-Expression: MIT
License-File: LICENSE
License-File: license.rst
Requires-Python: =={sys.version_info[0]}.{sys.version_info[1]}.*
Requires-Dist: numpy<2.6,>=2.0
Description-Content-Type: text/plain

CuPy {version.split("+")[0]} with the CUDA libraries replaced by host code, so that programs written for CuPy can be
tested where there is no GPU. CuPy is by Preferred Infrastructure, Preferred Networks and the CuPy developers; see
LICENSE. Kernels are compiled by g++, which has to be installed.
"""


def wanted(path):
    """Python modules, compiled extensions, and the headers kernels include at run time."""
    parts = path.relative_to(tree).parts
    if "_cccl" in parts or "_jitify" in parts or "__pycache__" in parts:
        return False
    if path.suffix in (".py", ".pyi", ".so") or path.name == "LICENSE":
        return True
    return parts[:3] == ("cupy", "_core", "include") or (
        parts[:3] == ("cupyx", "scipy", "ndimage") and path.suffix == ".h"
    )


with tempfile.TemporaryDirectory() as d:
    root = pathlib.Path(d) / f"cupy-{version}"
    for package in ("cupy", "cupyx", "cupy_backends"):
        for path in sorted((tree / package).rglob("*")):
            if path.is_file() and wanted(path):
                target = root / path.relative_to(tree)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                if path.suffix == ".so":
                    subprocess.run(["strip", "--strip-unneeded", target], check=True)
    own = root / "cupy_cpu"
    own.mkdir()
    for f in (HERE / "cupy_cpu").glob("*.py"):
        shutil.copyfile(f, own / f.name)
    shutil.copyfile(SHIM / "cuda_host.py", own / "cuda_host.py")
    shutil.copytree(SHIM / "device", own / "include", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [
            "g++",
            "-std=c++17",
            "-O2",
            "-Wall",
            "-fPIC",
            "-shared",
            "-fvisibility=default",
            "-U_FORTIFY_SOURCE",
            f"-I{SHIM}",
            HERE / "cupy_cpu/driver.cpp",
            "-o",
            own / "libcupy_cpu.so",
            "-ldl",
            "-pthread",
            "-s",
        ],
        check=True,
    )
    info = root / f"cupy-{version}.dist-info"
    (info / "licenses").mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    (info / "WHEEL").write_text(
        f"Wheel-Version: 1.0\nGenerator: assemble_wheel.py\nRoot-Is-Purelib: false\nTag: {tag}-{tag}-{sysconfig.get_platform().replace('-', '_')}\n"
    )
    (info / "top_level.txt").write_text("cupy\ncupy_backends\ncupy_cpu\ncupyx\n")
    shutil.copyfile(tree / "LICENSE", info / "licenses/LICENSE")
    shutil.copyfile(tree / "docs/source/license.rst", info / "licenses/license.rst")
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "wheel", "pack", "--dest-dir", out, root], check=True)
