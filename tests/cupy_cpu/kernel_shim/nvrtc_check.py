"""Compile a CUDA kernel file with NVIDIA's own compiler, without a GPU.

    pip install nvidia-cuda-nvrtc            # and nvidia-cuda-runtime for sources that include cuda_fp16.h and the like
    python nvrtc_check.py scale.cu -e "scale<float, 256>" -e "scale<double, 128>"

For each architecture (sm_80 and sm_90 unless --arch is given) and each kernel it prints registers, shared memory, stack
and spills as ptxas reports them.  Exits 1 if a source does not compile, a name expression names no kernel, or a limit
(--max-registers, --max-shared, --no-spills) is exceeded.  Options NVRTC knows (-D, -I, --std, ...) are passed on.
"""

import argparse
import ctypes
import glob
import importlib.util
import os
import re
import sys


def package_dirs():
    """Folders of the nvidia-* wheels: nvidia/cu13 (CUDA 13) and nvidia/cuda_nvrtc, nvidia/cuda_runtime (CUDA 12)."""
    spec = importlib.util.find_spec("nvidia")
    return [
        d
        for root in (spec.submodule_search_locations if spec else [])
        for d in sorted(glob.glob(os.path.join(root, "*")))
    ]


def load(path=None):
    """libnvrtc from the given path or the wheel."""
    found = (
        [path]
        if path
        else [
            f
            for d in package_dirs()
            for f in glob.glob(os.path.join(d, "lib", "libnvrtc.so.*"))
            if "alt" not in f
        ]
    )
    if not found:
        sys.exit(
            "libnvrtc not found: pip install nvidia-cuda-nvrtc, or name the library with --lib"
        )
    return ctypes.CDLL(found[-1])


class Nvrtc:
    """The few calls of NVRTC's C interface that are needed."""

    def __init__(self, library):
        self.lib = library
        self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(self, name, *args):
        status = getattr(self.lib, name)(*args)
        if status:
            raise RuntimeError(f"{name}: {self.lib.nvrtcGetErrorString(status).decode()}")

    def version(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def compile(self, source, name, expressions, options):
        """-> (compiled?, log, {lowered name: expression}, size of the cubin)"""
        prog = ctypes.c_void_p()
        self.call(
            "nvrtcCreateProgram", ctypes.byref(prog), source.encode(), name.encode(), 0, None, None
        )
        for e in expressions:
            self.call("nvrtcAddNameExpression", prog, e.encode())
        status = self.lib.nvrtcCompileProgram(
            prog, len(options), (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        )
        size = ctypes.c_size_t()
        self.call("nvrtcGetProgramLogSize", prog, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self.call("nvrtcGetProgramLog", prog, log)
        names = {}
        if not status:
            for e in expressions:
                lowered = ctypes.c_char_p()
                self.call("nvrtcGetLoweredName", prog, e.encode(), ctypes.byref(lowered))
                names[lowered.value.decode()] = e
            self.call("nvrtcGetCUBINSize", prog, ctypes.byref(size))
        self.call("nvrtcDestroyProgram", ctypes.byref(prog))
        return not status, log.value.decode(errors="replace"), names, 0 if status else size.value


def resources(log):
    """{kernel: {"registers", "shared", "stack", "spill_stores", "spill_loads"}} from ptxas -v."""
    found, kernel = {}, None
    for line in log.splitlines():
        if m := re.search(r"Compiling entry function '(\S+)'", line):
            kernel = found[m[1]] = {
                "registers": 0,
                "shared": 0,
                "stack": 0,
                "spill_stores": 0,
                "spill_loads": 0,
            }
        elif kernel is not None and (
            m := re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
            )
        ):
            kernel["stack"], kernel["spill_stores"], kernel["spill_loads"] = map(int, m.groups())
        elif kernel is not None and (m := re.search(r"Used (\d+) registers", line)):
            kernel["registers"] = int(m[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernel["shared"] = int(shared[1]) if shared else 0
            kernel = None
    return found


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("source", help="the .cu file")
    p.add_argument(
        "-e",
        "--expression",
        action="append",
        default=[],
        help="template kernel to instantiate; may be repeated",
    )
    p.add_argument("--arch", action="append", help="sm_80 and sm_90 if not given; may be repeated")
    p.add_argument("--lib", help="path of libnvrtc")
    p.add_argument("--max-registers", type=int, help="fail above this many registers a thread")
    p.add_argument(
        "--max-shared", type=int, help="fail above this many bytes of static shared memory a block"
    )
    p.add_argument("--no-spills", action="store_true", help="fail if any register spills")
    a, rest = p.parse_known_args(argv)
    nvrtc = Nvrtc(load(a.lib))
    with open(a.source) as f:
        source = f.read()
    includes = [
        f"-I{os.path.join(d, 'include')}"
        for d in package_dirs()
        if os.path.isdir(os.path.join(d, "include"))
    ]
    includes += [i + "/cccl" for i in includes if os.path.isdir(i[2:] + "/cccl")]
    std = [] if any("-std" in o for o in rest) else ["--std=c++17"]
    bad = False
    print("NVRTC {}.{}".format(*nvrtc.version()))
    for arch in a.arch or ["sm_80", "sm_90"]:
        options = [
            f"--gpu-architecture={arch}",
            *std,
            f"-I{os.path.dirname(os.path.abspath(a.source))}",
            *includes,
            "--ptxas-options=-v",
            *rest,
        ]
        ok, log, names, size = nvrtc.compile(
            source, os.path.basename(a.source), a.expression, options
        )
        if not ok:
            print(f"{arch}: does not compile\n{log}")
            bad = True
            continue
        found = resources(log)
        print(f"{arch}: {size} bytes of cubin, {len(found)} kernels")
        for line in log.splitlines():
            if "warning" in line.lower():
                print("   ", line)
        if not found:
            print("    no kernel was compiled: templates need -e")
            bad = True
        for symbol, r in found.items():
            print(
                f"    {names.get(symbol, symbol)}: {r['registers']} registers, {r['shared']} bytes shared, {r['stack']} bytes stack, "
                f"spills {r['spill_stores']} stored {r['spill_loads']} loaded"
            )
            over = [
                a.max_registers and r["registers"] > a.max_registers,
                a.max_shared and r["shared"] > a.max_shared,
                a.no_spills and r["spill_stores"] + r["spill_loads"],
            ]
            if any(over):
                print("    ^ over the limit")
                bad = True
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
