"""Turn an unpacked CuPy source distribution into its CPU build: python patch_source.py SOURCE_DIR.

CuPy can be built without CUDA for its documentation; every CUDA function is then a stub that returns success.  This
script gives the stubs that matter a body on host memory and makes all others raise.  Every edit must find its place:
a CuPy version that differs stops the script.
"""

import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = pathlib.Path(sys.argv[1])
FUNCTION = re.compile(
    r"^(?P<type>[\w][\w \*]*?)\b(?P<name>\w+)\((?P<args>[^;{}]*?)\)\s*\{.*?^\}|^(?P<type1>[\w][\w \*]*?)\b(?P<name1>\w+)\((?P<args1>[^;{}]*?)\)\s*\{[^\n]*\}$",
    re.M | re.S,
)


def edit(path, *pairs):
    """Replace each old text, which must occur exactly once."""
    p = ROOT / path
    text = p.read_text()
    for old, new in pairs:
        if text.count(old) != 1:
            sys.exit(f"{path}: found {text.count(old)} times instead of once: {old!r}")
        text = text.replace(old, new)
    p.write_text(text)


def edit_all(path, pattern, new):
    """Replace every match of a pattern, of which there must be at least one."""
    p = ROOT / path
    text, n = re.subn(pattern, new, p.read_text(), flags=re.M)
    if not n:
        sys.exit(f"{path}: no match for {pattern!r}")
    p.write_text(text)


def names_defined(header):
    """Functions a header of ours gives a body, by macros too."""
    text = (HERE / header).read_text()
    names = set(re.findall(r"\b((?:cuda|cublas|curand|make_cuda)\w*)\(", text))
    for family in set(re.findall(r"cublas##P##(\w+)\(", text)):
        names |= {f"cublas{p}{family}" for p in "SDCZ"}
    return names | {"cublas" + n for n in re.findall(r"CUPY_CPU_(?:DOT|GER)\((\w+),", text)}


def loud(header, ours=None, keep=()):
    """Make a stub header's functions raise, but for those in `keep` and those our header defines instead."""
    p = ROOT / header
    text = p.read_text()
    mine = names_defined(ours) if ours else set()
    count = [0, 0]

    def one(m):
        kind, name, args = (m[k] or m[k + "1"] for k in ("type", "name", "args"))
        if name in mine:
            count[0] += 1
            return ""
        if name in keep:
            return m.group()
        count[1] += 1
        return f'{kind}{name}({args}) {{ cupy_cpu_unsupported("{name}"); }}'

    text = FUNCTION.sub(one, text)
    text = re.sub(
        r"^(#define INCLUDE_GUARD.*\n)",
        lambda m: f'{m.group()}#include "{HERE}/stub_unsupported.h"\n',
        text,
        count=1,
        flags=re.M,
    )
    if ours:  # at the end, where every type is known
        text = re.sub(
            r"(\} // extern \"C\"\n)(?!(?:.|\n)*\} // extern \"C\")",
            lambda m: f'{m.group()}#include "{HERE}/{ours}"\n',
            text,
            count=1,
        )
    if ours and ours not in text:
        sys.exit(f"{header}: no place for {ours}")
    p.write_text(text)
    print(f"{header}: {count[0]} functions on the CPU, {count[1]} raise")


def translate_exceptions(path):
    """Declare the C functions of a Cython file `except +`, so that a C++ exception becomes a Python one."""
    p = ROOT / path
    lines, out, inside, indent, statement, n = p.read_text().split("\n"), [], False, 0, [], 0
    for line in lines:
        stripped, depth = line.strip(), len(line) - len(line.lstrip())
        if (
            inside
            and stripped
            and not stripped.startswith("#")
            and depth <= indent
            and not statement
        ):
            inside = False
        if re.match(r"\s*cdef extern from", line):
            inside, indent = True, depth
            out.append(line)
            continue
        if inside and stripped and not stripped.startswith(("#", '"""')):
            statement.append(line)
            joined = " ".join(statement)
            if joined.count("(") > joined.count(")"):
                out.append(line)
                continue
            code, hash_, comment = line.partition("#")
            if (
                re.match(
                    r"\s*(int|void|size_t|Status|Result|const char\s*\*|Extent|Pos|PitchedPtr)\s*\**\s*\w+\s*\(.*\)\s*(#.*)?$",
                    joined,
                )
                and "(*" not in joined
            ):
                line, n = (
                    code.rstrip() + " except +" + ("  " + hash_ + comment if hash_ else ""),
                    n + 1,
                )
            statement = []
        out.append(line)
    p.write_text("\n".join(out))
    print(f"{path}: {n} functions may raise")


# ---- version and build
edit("cupy/_version.py", ("__version__ = '14.2.0'", "__version__ = '14.2.0+cpu'"))
for feature in ("CUDA_nccl", "CUDA_cutensor", "CUDA_jitify", "CUDA_thrust", "CUDA_cusparselt"):
    edit("install/cupy_builder/_features.py", (f"            _from_dict({feature}, ctx),\n", ""))
(ROOT / "cupy/cuda/thrust.pyx").unlink()
(ROOT / "cupy/cuda/thrust.py").write_text("from cupy_cpu.thrust import *  # NOQA\n")

# ---- stubs
STUB = "cupy_backends/stub/"
loud(
    STUB + "cupy_cuda_runtime.h",
    "stub_runtime.h",
    keep=("make_cudaExtent", "make_cudaPos", "make_cudaPitchedPtr"),
)
loud(STUB + "cupy_cublas.h", "stub_cublas.h")
edit(
    STUB + "cupy_cublas.h",
    (
        '#include "cupy_cuda_common.h"\n',
        '#include "cupy_cuda_common.h"\n#include "cupy_cuComplex.h"\n',
    ),
)
loud(STUB + "cupy_curand.h", "stub_curand.h")
for name in ("cusolver", "cusparse"):
    loud(
        STUB + f"cupy_{name}.h",
        keep=(f"{name}Destroy", f"{name}DnDestroy", f"{name}SpDestroy", f"{name}RfDestroy"),
    )
p = ROOT / "cupy/cuda/cupy_cub.h"
p.write_text(
    re.sub(
        r"^((?:void|size_t) (cub_\w+)\(\.\.\.\)) \{.*?^\}",
        r'\1 { cupy_cpu_unsupported("\2 (CUB)"); }',
        p.read_text(),
        flags=re.M | re.S,
    ).replace(
        "#else // CUPY_NO_CUDA\n", f'#else // CUPY_NO_CUDA\n#include "{HERE}/stub_unsupported.h"\n'
    )
)
p = ROOT / "cupy/cuda/cupy_cufft.h"
head, _, tail = p.read_text().partition("#else  // defined(CUPY_NO_CUDA)")
tail = re.sub(
    r"^(cufftResult_t (cufft\w+)\(\.\.\.\)) \{.*?^\}",
    r'\1 { cupy_cpu_unsupported("\2"); }',
    tail,
    flags=re.M | re.S,
)
p.write_text(
    head + "#else  // defined(CUPY_NO_CUDA)\n" + f'#include "{HERE}/stub_unsupported.h"\n' + tail
)
p = ROOT / "cupy/random/cupy_distributions.cuh"
head, _, tail = p.read_text().partition("// --no -cuda will not compile the .cu file")
p.write_text(
    head
    + f'#include "{HERE}/stub_unsupported.h"\n#include "{HERE}/stub_random.h"\n#endif\n#endif\n'
)
for path in (
    "cupy_backends/cuda/api/_runtime_extern.pxi",
    "cupy_backends/cuda/libs/cublas.pyx",
    "cupy_backends/cuda/libs/curand.pyx",
    "cupy_backends/cuda/libs/cusolver.pyx",
    "cupy_backends/cuda/libs/cusparse.pyx",
    "cupy/cuda/cufft.pyx",
    "cupy/cuda/cub.pyx",
):
    translate_exceptions(path)

# ---- run time: one device on host memory
edit(
    "cupy_backends/cuda/api/_runtime_extern.pxi",
    (
        "    int cudaMemcpy(void* dst, const void* src, size_t count,\n",
        "    int cupy_cpu_pointer_type(const void* p)\n    int cudaMemcpy(void* dst, const void* src, size_t count,\n",
    ),
)
edit(
    "cupy_backends/cuda/api/runtime.pyx",
    (
        """    check_status(status)
    IF CUPY_CUDA_VERSION > 0:
        return PointerAttributes(
""",
        """    check_status(status)
    cdef int kind = cupy_cpu_pointer_type(<void*>ptr)
    return PointerAttributes(
        0 if kind else -2, ptr if kind else 0, ptr if kind == 1 else 0, kind)
    IF CUPY_CUDA_VERSION > 0:
        return PointerAttributes(
""",
    ),
    (
        "        raise ValueError('Fetching memory unsupported.')",
        "        return cupy_cpu_pointer_type(<void*>ptr)",
    ),
    (
        "    cdef dict properties = {'name': b'UNAVAILABLE'}  # for RTD\n",
        """    if device != 0:
        check_status(101)
    cdef size_t free_bytes, total_bytes
    cudaMemGetInfo(&free_bytes, &total_bytes)
    cdef dict properties = {
        'name': b'CPU build of CuPy (sm_80 limits)', 'totalGlobalMem': total_bytes, 'sharedMemPerBlock': 49152, 'regsPerBlock': 65536,
        'warpSize': 32, 'maxThreadsPerBlock': 1024, 'maxThreadsDim': (1024, 1024, 64), 'maxGridSize': (2147483647, 65535, 65535),
        'clockRate': 1000000, 'totalConstMem': 65536, 'major': 8, 'minor': 0, 'multiProcessorCount': 4, 'integrated': 0,
        'canMapHostMemory': 1, 'computeMode': 0, 'concurrentKernels': 1, 'ECCEnabled': 0, 'pciBusID': 0, 'pciDeviceID': 0,
        'pciDomainID': 0, 'memoryClockRate': 1000000, 'memoryBusWidth': 128, 'l2CacheSize': 4194304, 'maxThreadsPerMultiProcessor': 2048,
        'isMultiGpuBoard': 0, 'cooperativeLaunch': 0, 'cooperativeMultiDeviceLaunch': 0, 'sharedMemPerMultiprocessor': 167936,
        'regsPerMultiprocessor': 65536, 'managedMemory': 1, 'sharedMemPerBlockOptin': 166912, 'maxBlocksPerMultiProcessor': 32}
    return properties
""",
    ),
)
for path, old in (
    (
        "cupy_backends/cuda/api/_driver_extern.pxi",
        "    return SoftLink(libname, prefix, mandatory=True)",
    ),
    (
        "cupy_backends/cuda/libs/_cnvrtc.pxi",
        "    return SoftLink(libname, prefix, mandatory=True, handle=handle)",
    ),
    (
        "cupy_backends/cuda/api/_runtime_softlink.pxi",
        "    return SoftLink(libname, prefix, mandatory=True, handle=handle)",
    ),
):
    edit(
        path,
        (old, "    import cupy_cpu\n    return SoftLink(cupy_cpu.library, prefix, mandatory=True)"),
    )
# CuPy takes a missing library for a mistake of its own (AssertionError); here it is a fact, of which
# whoever calls such a function should be told.
for what in ("unsupported", "not_found"):
    edit_all(
        "cupy_backends/cuda/_softlink.pyx",
        rf"(cdef int _fail_{what}\(\)[^\n]*\n    with gil:\n        )raise AssertionError\('''(?:.|\n)*?'''\)",
        r"\1raise NotImplementedError('this function is not implemented in the CPU build of CuPy')",
    )
edit(
    "cupy_backends/cuda/libs/cusolver.pyx",
    (
        "super(CUSOLVERError, self).__init__(err[status])",
        "super(CUSOLVERError, self).__init__(\n            err.get(status, 'not implemented in the CPU build of CuPy'))",
    ),
)

# ---- memory: what nobody wrote reads as NaN and -1
edit(
    "cupy/cuda/memory.pyx",
    (
        "    return get_allocator()(size)\n",
        "    cdef MemoryPointer p = get_allocator()(size)\n    if size > 0 and p.ptr != 0:\n        c_memset(<void*>p.ptr, 0xff, size)\n    return p\n",
    ),
    (
        "from libc.stdint cimport intptr_t, uintptr_t\n",
        "from libc.stdint cimport intptr_t, uintptr_t\nfrom libc.string cimport memset as c_memset\n",
    ),
)
edit(
    "cupy/__init__.py",
    (
        "cuda.set_allocator(_default_memory_pool.malloc)\n",
        """import os as _os  # NOQA
if _os.environ.get('CUPY_CPU_GUARD') == '1':
    cuda.set_allocator(None)  # a pool would hide the ends of arrays
else:
    cuda.set_allocator(_default_memory_pool.malloc)
""",
    ),
)

# ---- accelerators off: they are closed or templated device code, so reductions go through CuPy's own
# kernels, which are what is to be run; who asks for an accelerator by name is told that there is none
edit(
    "cupy/_core/_accelerator.pyx",
    (
        """    cdef str b, accelerator_names = os.getenv(
        'CUPY_ACCELERATORS', '' if runtime._is_hip_environment else 'cub')
    cdef list accelerators = [b for b in accelerator_names.split(',') if b]
""",
        "    cdef list accelerators = []  # CUPY_ACCELERATORS is not read\n",
    ),
    (
        "    raise ValueError('Unknown accelerator: {}'.format(accelerator))\n",
        "    raise ValueError('Unknown accelerator: {}'.format(accelerator))\n\n\ncdef list _checked(accelerators):\n    cdef list known = [_get_accelerator(b) for b in accelerators]\n    if known:\n        raise NotImplementedError(\n            'accelerators (CUB, cuTENSOR) are not implemented in the '\n            'CPU build of CuPy')\n    return known\n",
    ),
)
edit_all(
    "cupy/_core/_accelerator.pyx",
    r"= \[_get_accelerator\(b\) for b in accelerators\]$",
    "= _checked(accelerators)",
)
edit_all(
    "cupy/_core/_accelerator.pyx",
    r"    cdef list known = _checked\(accelerators\)",
    "    cdef list known = [_get_accelerator(b) for b in accelerators]",
)

# ---- kernels: g++ instead of NVRTC
edit(
    "cupy/_core/core.pyx",
    (
        """    return (f"-I{_get_header_dir_path()}/cupy/_cccl/cub",
            f"-I{_get_header_dir_path()}/cupy/_cccl/thrust",
            f"-I{_get_header_dir_path()}/cupy/_cccl/libcudacxx")
""",
        "    return ()  # cupy_cpu's include directory has what CuPy uses of CCCL\n",
    ),
    (
        """            from cuda.pathfinder import find_nvidia_header_directory
            _cuda_include_dir = find_nvidia_header_directory('cudart')
""",
        "            _cuda_include_dir = __import__('cupy_cpu').include_dir\n",
    ),
)
edit(
    "cupy/cuda/compiler.py",
    (
        "        self.ptr = nvrtc.createProgram(src, name, headers, include_names)\n",
        "        if headers:\n            raise cupy_cpu.unsupported('jitify')\n",
    ),
    ("        if self.ptr:\n            nvrtc.destroyProgram(self.ptr)\n", ""),
    (
        """        try:
            if self.name_expressions:
                for ker in self.name_expressions:
                    nvrtc.addNameExpression(self.ptr, ker)
            nvrtc.compileProgram(self.ptr, options)
            mapping = None
            if self.name_expressions:
                mapping = {}
                for ker in self.name_expressions:
                    mapping[ker] = nvrtc.getLoweredName(self.ptr, ker)
            if log_stream is not None:
                log_stream.write(nvrtc.getProgramLog(self.ptr))
            # This is to ensure backwards compatibility with nvrtc
            if self.method == 'cubin':
                return nvrtc.getCUBIN(self.ptr), mapping
            elif self.method == 'ptx':
                return nvrtc.getPTX(self.ptr), mapping
            elif self.method == 'lto':
                return nvrtc.getLTOIR(self.ptr), mapping
            else:
                raise RuntimeError('Unknown NVRTC compile method')
        except nvrtc.NVRTCError:
            log = nvrtc.getProgramLog(self.ptr)
            raise CompileException(log, self.src, self.name, options,
                                   'nvrtc' if not runtime.is_hip else 'hiprtc')
""",
        """        try:
            if self.method == 'ptx' and not self.src:
                # asked for the compiler's identity, a part of cache keys
                return b'// ' + cuda_host.fingerprint().encode(), None
            if self.method != 'cubin':
                raise cupy_cpu.unsupported(f'compiling to {self.method}')
            if any(o in _rdc_flags for o in options):
                raise cupy_cpu.unsupported('relocatable device code')
            image, mapping, log = cuda_host.compile_module(
                self.src, options, self.name_expressions, filename=self.name,
                cache_dir=getattr(_kernel_cache_backend, '_cache_dir', None))
        except cuda_host.CompileError as e:
            raise CompileException(str(e), self.src, self.name, options)
        if log_stream is not None:
            log_stream.write(log)
        return image, mapping or None
""",
    ),
    (
        "from cupy import _util\n",
        "from cupy import _util\nimport cupy_cpu\nfrom cupy_cpu import cuda_host\n",
    ),
    (
        "    # defer import to here to avoid circular dependency\n    from cupy.cuda import get_nvcc_path\n",
        "    raise cupy_cpu.unsupported(\"backend='nvcc'\")\n    from cupy.cuda import get_nvcc_path\n",
    ),
    (
        "    if jitify and backend != 'nvrtc':\n",
        "    if jitify:\n        raise cupy_cpu.unsupported('jitify')\n    if jitify and backend != 'nvrtc':\n",
    ),
    ("_use_ptx = _get_bool_env_variable('CUPY_COMPILE_WITH_PTX', False)\n", "_use_ptx = False\n"),
)
edit(
    "cupy/cuda/function.pyx",
    (
        "    cdef CPointer cp\n    kargs.reserve(len(args))\n",
        "    cdef CPointer cp\n    cupy_cpu.check_arguments(func, args, _ndarray_base)\n    kargs.reserve(len(args))\n",
    ),
    ("import numpy\nimport warnings\n", "import cupy_cpu\nimport numpy\nimport warnings\n"),
)
edit("cupy/cuda/_compiler_cache.py", ("'~/.cupy/kernel_cache'", "'~/.cupy/cpu_kernel_cache'"))
# CuPy's partition kernels rely on the 32 lanes of a warp running in lockstep between these steps.
edit_all(
    "cupy/_core/_routines_sorting.pyx",
    r"(        for \(ptrdiff_t j = i; j < \(y - x\) / 2; j \+= 32\) \{\n(?:.|\n)*?\n        \}\n)",
    r"        __syncwarp();\n\1        __syncwarp();\n",
)
edit_all(
    "cupy/_core/_routines_sorting.pyx",
    r"(        for \(int s = i; s < u; s \+= 32\) \{\n)",
    r"        __syncwarp();\n\1",
)

edit(
    "cupy/_core/core.pyx",
    ("    'cupy_byteswap',\n    preamble", "    'cupy_byteswap_kernel',\n    preamble"),
)  # a function of that name is there too

# ---- random generators: Cython's wrappers of C functions do not translate exceptions, so raise before the call
edit_all(
    "cupy/random/_generator_api.pyx",
    r"^( +)(_launch_dist\(\s*self\.bit_generator, (beta|geometric|hypergeometric|logseries|poisson|standard_gamma|binomial),)",
    r"\1raise __import__('cupy_cpu').unsupported('cupy.random.Generator.\3')\n\1\2",
)

# ---- no look for NVIDIA's files
for path in (
    "cupy_backends/cuda/libs/cusolver.pyx",
    "cupy_backends/cuda/libs/cusparse.pyx",
    "cupy_backends/cuda/libs/_cnvrtc.pxi",
    "cupy_backends/cuda/api/_runtime_softlink.pxi",
    "cupy/cuda/cufft.pyx",
    "cupy/fft/_callback.pyx",
    "cupy/_environment.py",
    "cupyx/_runtime.py",
    "cupy_backends/cuda/libs/__init__.py",
    "cupy/cuda/__init__.py",
):
    p = ROOT / path
    p.write_text(
        p.read_text()
        .replace("from cuda import pathfinder", "from cupy_cpu import _pathfinder as pathfinder")
        .replace("pathfinder as pathfinder as _pathfinder", "pathfinder as _pathfinder")
        .replace("from cuda.pathfinder import", "from cupy_cpu._pathfinder import")
    )
edit(
    "cupy_backends/cuda/libs/__init__.py",
    (
        "    if not _runtime.is_hip and name in _submodules:\n",
        "    if name in ('nccl', 'cutensor', 'cusparselt'):\n        raise ImportError(f'{name} is not implemented in the CPU build of CuPy')\n    if False:\n",
    ),
)
edit(
    "cupy/cuda/__init__.py",
    (
        "    elif key == 'cufft':\n        if not runtime.is_hip:\n",
        "    elif key == 'cufft':\n        if False:\n",
    ),
)
edit(
    "cupy/_environment.py",
    (
        "    # Derive the CUDA root from NVRTC's location via pathfinder.\n",
        "    return None\n    # Derive the CUDA root from NVRTC's location via pathfinder.\n",
    ),
    (
        '    # Honor the "NVCC" env var (e.g., "ccache nvcc")\n',
        '    return None\n    # Honor the "NVCC" env var (e.g., "ccache nvcc")\n',
    ),
)
