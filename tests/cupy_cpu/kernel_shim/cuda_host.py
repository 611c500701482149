"""Compile CUDA C++ kernel sources for the CPU with g++.

``compile_module`` is what the CuPy build uses in place of NVRTC; ``python cuda_host.py`` is the command line for a
project's own kernels (see README.md).  The source stays as it is but for two things a host compiler cannot take:
``extern __shared__ T name[];`` becomes a pointer to the launch's dynamic shared memory, and every kernel that can be
looked up by name gets a function that unpacks its arguments.
"""

import argparse
import functools
import hashlib
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
DEVICE = next(
    d for d in (os.path.join(HERE, "include"), os.path.join(HERE, "device")) if os.path.isdir(d)
)
# No contraction and no fast math: the CPU result must not depend on the CPU.  Wrapping and loose aliasing are what
# generated CUDA code counts on.  Hidden visibility and -Bsymbolic keep equally named symbols of two modules apart.
FLAGS = (
    "-std=c++17 -w -fPIC -fpermissive -fwrapv -fno-strict-aliasing -ffp-contract=off -fno-math-errno"
    " -fvisibility=hidden -fno-gnu-unique -U_FORTIFY_SOURCE -fmax-errors=10"
).split()

_TOKEN = re.compile(
    r"""
    (?P<skip>\s+|//[^\n]*|/\*.*?\*/)
  | (?P<directive>(?:(?<=\n)|\A)[ \t]*\#(?:\\\n|[^\n])*)
  | (?P<string>R"\((?:.|\n)*?\)"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
  | (?P<name>[A-Za-z_]\w*)
  | (?P<other>.)""",
    re.X | re.S,
)


class CompileError(Exception):
    """The compiler's messages for a source it refused."""


def _tokens(source):
    """Yield (kind, text, start, end) without blanks and comments."""
    directive_ok = _TOKEN
    for m in directive_ok.finditer(source):
        if m.lastgroup != "skip":
            yield m.lastgroup, m.group(), m.start(), m.end()


def _skip_group(tokens, i):
    """Index after the parenthesised group that opens at tokens[i]."""
    depth = 0
    while i < len(tokens):
        depth += {"(": 1, ")": -1}.get(tokens[i][1], 0)
        i += 1
        if depth == 0:
            break
    return i


def _dynamic_shared(tokens):
    """Declaration of ``extern __shared__`` in these tokens -> (type, name) or None."""
    words, i = [], 0
    while i < len(tokens):
        text = tokens[i][1]
        if (
            text in ("__align__", "alignas", "__attribute__")
            and i + 1 < len(tokens)
            and tokens[i + 1][1] == "("
        ):
            i = _skip_group(tokens, i + 1)
            continue
        words.append(text)
        i += 1
    if "extern" not in words or "__shared__" not in words or words[-2:] != ["[", "]"]:
        return None
    body = [w for w in words[:-2] if w not in ("extern", "__shared__")]
    return (re.sub(r" ?(::) ?", r"\1", " ".join(body[:-1])), body[-1]) if len(body) > 1 else None


def _kernel_name(tokens):
    """Name declared by the tokens that follow ``__global__``."""
    i = 0
    while i < len(tokens):
        text = tokens[i][1]
        if text in ("__launch_bounds__", "__attribute__", "__cluster_dims__", "__maxnreg__"):
            i = _skip_group(tokens, i + 1)
        elif i + 1 < len(tokens) and tokens[i + 1][1] == "(" and tokens[i][0] == "name":
            return text
        elif text in ("(", "<", ";", "{"):
            return None
        else:
            i += 1
    return None


def translate(source):
    """Source with dynamic shared memory rewritten, and the names of its ``extern "C"`` kernels."""
    edits, kernels, scopes, statement = [], [], [], []
    tokens = list(_tokens(source))
    for i, token in enumerate(tokens):
        kind, text, start, end = token
        if kind == "directive":
            statement = []
            continue
        if text == "__global__":
            words = [t[1] for t in statement]
            if "template" not in words and (
                ("extern" in words and '"C"' in words) or '"C"' in scopes
            ):
                name = _kernel_name(tokens[i + 1 : i + 200])
                if name:
                    kernels.append(name)
        if text == "{":
            words = [t[1] for t in statement]
            scopes.append(
                '"C"'
                if words[-2:] == ["extern", '"C"']
                else "namespace"
                if "namespace" in words
                else "{"
            )
        if text == "}" and scopes:
            scopes.pop()
        if text == ";":
            found = _dynamic_shared(statement)
            if found:
                ctype, name = found
                new = f"{ctype}* {name} = ({ctype}*)shim_dynamic_shared();"
                if (
                    "{" not in scopes
                ):  # at namespace scope there is no launch yet, so look it up at each use
                    line = source.count("\n", 0, end) + 1
                    new = f"static inline {ctype}* shim_at_{name}() {{ return ({ctype}*)shim_dynamic_shared(); }}\n#define {name} (shim_at_{name}())\n#line {line}\n"
                edits.append((statement[0][2], end, new))
        statement = [] if text in ";{}" else [*statement, token]
    for start, end, new in reversed(edits):
        source = source[:start] + new + source[end:]
    return source, list(dict.fromkeys(kernels))


def _hides_kernels(source, kernels, options):
    """Whether kernels may come out of macros or included files, where `translate` does not see them."""
    macros = set(re.findall(r"(?m)^[ \t]*#[ \t]*define[ \t]+(\w+)", source)) | {
        re.split(r"[=(]", o[2:])[0] for o in options if o[:2] == "-D"
    }
    return bool(
        macros & set(kernels)
        or re.search(r"(?m)^[ \t]*#[ \t]*(?:define.*(?:\\\n.*)*__global__|include[ \t]*\")", source)
    )


def _preprocessed_kernels(source, compiler, options):
    """Kernels as the preprocessor leaves them."""
    run = subprocess.run(
        [
            *compiler,
            "-E",
            "-P",
            "-x",
            "c++",
            *FLAGS,
            "-DSHIM_SCAN",
            f"-I{DEVICE}",
            "-include",
            f"{DEVICE}/cuda_device.h",
            *options,
            "-",
        ],
        input=source,
        capture_output=True,
        text=True,
    )
    return translate(run.stdout)[1] if run.returncode == 0 else []


@functools.cache
def compiler_command():
    """The host compiler, from CUPY_CPU_CXX or g++, checked for C++17 and _Float16."""
    command = os.environ.get("CUPY_CPU_CXX", "g++").split()
    try:
        run = subprocess.run(
            [*command, "-std=c++17", "-x", "c++", "-fsyntax-only", "-"],
            input="_Float16 h = 1;",
            capture_output=True,
            text=True,
        )
    except OSError as e:
        raise CompileError(
            f"kernels are compiled by g++, which cannot be run here: {e}. Install g++ 12 or newer, or name a compiler in CUPY_CPU_CXX."
        ) from e
    if run.returncode:
        raise CompileError(
            f"kernels need a compiler with C++17 and _Float16 (g++ 12 or newer); {command[0]} says:\n{run.stderr}"
        )
    return tuple(command)


@functools.cache
def fingerprint():
    """Changes whenever the same source could compile to something else."""
    h = hashlib.sha256(repr((FLAGS, os.environ.get("CUPY_CPU_CXXFLAGS"))).encode())
    h.update(subprocess.run([*compiler_command(), "--version"], capture_output=True).stdout)
    for root, _, files in sorted(os.walk(DEVICE)):
        for f in sorted(files):
            with open(os.path.join(root, f), "rb") as fh:
                h.update(fh.read())
    with open(__file__, "rb") as fh:
        h.update(fh.read())
    return h.hexdigest()


# NVRTC's options that only steer GPU code or messages.  Any other is refused, as NVRTC does.
GPU_OPTIONS = set(
    """arch gpu-architecture dc device-c dw device-w rdc relocatable-device-code ewp extensible-whole-program G device-debug
lineinfo generate-line-info dopt Xptxas ptxas-options maxrregcount ftz prec-sqrt prec-div fmad use_fast_math extra-device-vectorization
modify-stack-limit dlto dlink-time-opt gen-opt-lto optix-ir jump-table-density device-stack-protector no-source-include builtin-move-forward
builtin-initializer-list w disable-warnings Wreorder warning-as-error restrict default-device device-as-default-execution-space device-int128
device-float128 opt-info optimization-info err-no display-error-number no-err-no no-display-error-number diag-error diag-suppress diag-warn
brief-diag brief-diagnostics time split-compile fdevice-syntax-only minimal frandom-seed pch create-pch use-pch pch-dir pch-verbose pch-messages""".split()
)


def host_options(options):
    """NVRTC options a host compiler understands; those of GPU_OPTIONS are dropped."""
    keep, options = [], list(options)
    while options:
        o = options.pop(0)
        name, _, value = o.partition("=")
        if (
            o in ("-I", "-D", "-U", "--include-path", "--define-macro", "--undefine-macro")
            and options
        ):
            keep.append(
                {"--include-path": "-I", "--define-macro": "-D", "--undefine-macro": "-U"}.get(o, o)
                + options.pop(0)
            )
        elif name in ("--include-path", "--define-macro", "--undefine-macro"):
            keep.append(
                {"--include-path": "-I", "--define-macro": "-D", "--undefine-macro": "-U"}[name]
                + value
            )
        elif o[:2] in ("-I", "-D", "-U"):
            keep.append(o)
        elif name in ("-std", "--std"):
            keep.append("-std=" + ("c++17" if value in ("c++03", "c++11", "c++14") else value))
        elif name in ("-include", "--pre-include"):
            keep += ["-include", value or options.pop(0)]
        elif name.lstrip("-") not in GPU_OPTIONS:
            raise CompileError(f"nvrtc: error: unrecognized option {o} found")
        elif (
            name
            in (
                "-Xptxas",
                "--ptxas-options",
                "-maxrregcount",
                "--maxrregcount",
                "-arch",
                "--gpu-architecture",
            )
            and not value
            and options
        ):
            options.pop(0)
    return keep


def compile_module(
    source, options=(), name_expressions=(), *, filename="kernel.cu", cache_dir=None
):
    """Shared object for the CuPy executor, and {name expression: symbol}."""
    compiler, options = compiler_command(), host_options(options)
    text, kernels = translate(source)
    if _hides_kernels(source, kernels, options):
        kernels = _preprocessed_kernels(source, compiler, options)
    symbols = {
        e: f"shimne_{i}_{hashlib.sha256(e.encode()).hexdigest()[:16]}"
        for i, e in enumerate(name_expressions or ())
    }
    entry = (
        'extern "C" __attribute__((visibility("default"))) void shimk_{0}(void** a, ShimThreads* t) {{ shim_run({1}, a, t); }}\n'
        'extern "C" __attribute__((visibility("default"))) unsigned shimargs_{0}(unsigned i) {{ return shim_signature({1}, i); }}'
    )
    lines = [entry.format(k, "&" + k) for k in kernels] + [
        entry.format(s, f"&{e}") for e, s in symbols.items()
    ]
    lines.append(
        'extern "C" __attribute__((visibility("default"))) ShimThread** shim_bind(const ShimApi* a) { shim_api = a; return &shim_cur; }'
    )
    body = (
        f'#line 1 "{os.path.basename(filename) or "kernel.cu"}"\n{text}\n#line 1 "<kernel table>"\n'
        + "\n".join(lines)
        + "\n"
    )
    extra = os.environ.get("CUPY_CPU_CXXFLAGS", "").split()
    with tempfile.TemporaryDirectory(prefix="cupy_cpu_") as d:
        src, out = os.path.join(d, "kernel.cpp"), os.path.join(d, "kernel.so")
        with open(src, "w") as f:
            f.write(body)
        flags = [*FLAGS, "-O1", *options, f"-I{DEVICE}", *extra]
        usual = (
            all(
                o == "-std=c++17" or o == f"-I{DEVICE}" or o.endswith("cupy/_core/include")
                for o in options
            )
            and not extra
        )
        pre = (usual and precompiled(source, flags, cache_dir)) or f"{DEVICE}/cuda_device.h"
        run = subprocess.run(
            [*compiler, *flags, "-shared", "-Wl,-Bsymbolic", "-s", "-include", pre, src, "-o", out],
            capture_output=True,
            text=True,
        )
        if run.returncode:
            raise CompileError(run.stderr.replace(d + "/", ""))
        with open(out, "rb") as f:
            return f.read(), symbols, run.stderr


def precompiled(source, flags, cache_dir):
    """A precompiled copy of the device header (g++ falls back to the header itself if it does not fit)."""
    if not cache_dir:
        return None
    own = (
        "#include <cupy/complex.cuh>" in source[:2000]
    )  # CuPy's generated kernels all begin with the same headers
    seen = [
        os.stat(os.path.join(f[2:], "cupy", "complex.cuh")).st_mtime_ns
        for f in flags
        if f.endswith("cupy/_core/include")
    ]
    key = hashlib.sha256((fingerprint() + repr((flags, own, seen))).encode()).hexdigest()[:24]
    folder = os.path.join(cache_dir, f"pch_{key}")
    header = os.path.join(folder, "shim.h")
    if os.path.exists(header):
        return header
    body = f'#include "{DEVICE}/cuda_device.h"\n'
    if own:
        body += "#include <cupy/complex.cuh>\n#include <cupy/carray.cuh>\n#include <cupy/float16.cuh>\n#include <cupy/bfloat16.cuh>\n#include <cupy/atomics.cuh>\n#include <cupy/math_constants.h>\n"
    os.makedirs(cache_dir, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pch_tmp_", dir=cache_dir) as d:
        with open(os.path.join(d, "shim.h"), "w") as f:
            f.write(body)
        run = subprocess.run(
            [
                *compiler_command(),
                *flags,
                "-x",
                "c++-header",
                os.path.join(d, "shim.h"),
                "-o",
                os.path.join(d, "shim.h.gch"),
            ],
            capture_output=True,
        )
        if run.returncode:
            return None
        try:
            os.rename(d, folder)  # another process may have been first
            os.mkdir(d)  # for TemporaryDirectory to remove
        except OSError:
            pass
    return header if os.path.exists(header) else None


def compile_library(kernel, out, *, wrapper, mode="fibers", options=()):
    """A library that runs a project's kernels outside CuPy: `wrapper` includes the kernel file and launches it."""
    with open(kernel) as f:
        text, _ = translate(f.read())
    how = {"fibers": ["-O1"], "threads": ["-O1", "-g", "-DSHIM_THREADS", "-pthread"]}
    how["tsan"] = how["threads"] + ["-fsanitize=thread"]
    how["asan"] = how["threads"] + ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    shared = [] if out.endswith(".exe") else ["-shared"]
    with tempfile.TemporaryDirectory(prefix="cuda_host_") as d:
        with open(os.path.join(d, os.path.basename(kernel)), "w") as f:
            f.write(f'#line 1 "{kernel}"\n{text}')
        source = os.path.join(
            d, "wrapper.cpp"
        )  # beside the translated kernel, so that its #include finds that one
        with open(source, "w") as f, open(wrapper) as w:
            f.write(f'#line 1 "{wrapper}"\n{w.read()}')
        cmd = [
            *compiler_command(),
            *FLAGS,
            "-std=c++20",
            *how[mode],
            *shared,
            "-Wl,-Bsymbolic",
            f"-I{HERE}",
            f"-I{DEVICE}",
            f"-I{os.path.dirname(os.path.abspath(wrapper))}",
            f"-I{os.path.dirname(os.path.abspath(kernel))}",
            "-include",
            f"{HERE}/cuda_shim.h",
            *options,
            source,
            "-o",
            out,
        ]
        if subprocess.run(cmd).returncode:
            raise SystemExit(1)


def main(argv=None):
    p = argparse.ArgumentParser(description="Compile a CUDA kernel file for the CPU.")
    p.add_argument("kernel", help="the .cu file")
    p.add_argument(
        "wrapper", help="C++ file that includes the kernel file by its base name and launches it"
    )
    p.add_argument(
        "-o", "--out", required=True, help="library to write; a name ending in .exe makes a program"
    )
    p.add_argument("--mode", choices=("fibers", "threads", "tsan", "asan"), default="fibers")
    a, rest = p.parse_known_args(argv)
    compile_library(a.kernel, a.out, wrapper=a.wrapper, mode=a.mode, options=rest)


if __name__ == "__main__":
    sys.exit(main())
