"""The public face: names, signatures that go together, a light import, docstrings that run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import topk_np
from tests.test_docs import MODULES as PUBLIC_MODULES
from topk_np import interop

TRIOS = ("dense_attention", "dense_ffn", "multihead_attention", "topk_attention", "topk_ffn")
DATA = {
    "attention": ["query", "key", "value"],
    "ffn": ["x", "keys", "values"],
    "multihead_attention": ["x", "weights", "context"],
}
PUBLIC = sorted(
    [
        *(f"{name}{suffix}" for name in TRIOS for suffix in ("", "_bwd", "_fwd")),
        "ALiBi",
        "AttentionGrads",
        "FFNGrads",
        "KVCache",
        "MultiheadGrads",
        "MultiheadWeights",
        "Plan",
        "Rope",
        "T5Bias",
        "TopK",
        "array_namespace",
        "merge_heads",
        "plan",
        "rotary_embedding",
        "rotary_embedding_bwd",
        "split_heads",
        "top_k",
        "vjp",
    ]
)
HEAVY = (
    "concurrent.futures.process",
    "cupy",
    "gguf",
    "hypothesis",
    "jax",
    "matplotlib",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "tqdm",
)
PACKAGES = (topk_np, interop, *(module for module in PUBLIC_MODULES if hasattr(module, "__path__")))
INTERNAL = {  # packages that stand behind the commands or the public functions
    *("bench", "commands", "runs", "selftest", "studies"),
    *("core", "kernels", "options", "schedule"),
}
NEED_MORE = (  # PyTorch, JAX or CuPy
    "torch_peers",
    "interop.jax",
    "interop.torch",
    "kernels.cupy",
    "kernels.cupy_blas",
)
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(topk_np.__path__, "topk_np.")
    if not module.name.endswith(("__main__", *NEED_MORE))
)


def parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Names of a function's parameters with their kind and default."""
    found = inspect.signature(function).parameters.values()
    return {parameter.name: (parameter.kind, parameter.default) for parameter in found}


def test_the_public_names_are_those_of_the_design() -> None:
    assert topk_np.__all__ == PUBLIC
    for name in PUBLIC:
        assert hasattr(topk_np, name)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_nothing_but_modules_and_public_names_is_reachable(package: ModuleType) -> None:
    reachable = {
        name: thing
        for name, thing in vars(package).items()
        if not name.startswith(("_", "@"))  # the second are pytest's own
    }
    modules = {name for name, thing in reachable.items() if inspect.ismodule(thing)}
    assert reachable.keys() - modules == set(getattr(package, "__all__", ()))
    foreign = {name for name in modules if reachable[name].__name__ != f"{package.__name__}.{name}"}
    assert foreign <= {"dask"}  # whose name `import dask.array` binds


def test_every_public_package_is_in_the_list_that_is_checked() -> None:
    found = {module.name for module in pkgutil.iter_modules(topk_np.__path__) if module.ispkg}
    assert found - INTERNAL == {package.__name__.split(".")[1] for package in PACKAGES[1:]}


@pytest.mark.parametrize("name", TRIOS)
def test_the_functions_of_a_trio_take_the_same_arguments(name: str) -> None:
    function, fwd, bwd = (getattr(topk_np, name + suffix) for suffix in ("", "_fwd", "_bwd"))
    assert parameters(function) == parameters(fwd)
    positional = inspect.Parameter.POSITIONAL_ONLY
    assert [(p, kind) for p, (kind, _) in parameters(bwd).items()] == [
        ("residuals", positional),
        ("dout", positional),
    ]


@pytest.mark.parametrize(
    ("kind", "extra"),
    [("attention", {"k", "max_k", "p"}), ("ffn", {"k", "select"})],
    ids=["attention", "ffn"],
)
def test_dense_functions_take_what_the_topk_functions_take_without_k(
    kind: str, extra: set[str]
) -> None:
    topk = parameters(getattr(topk_np, f"topk_{kind}"))
    dense = parameters(getattr(topk_np, f"dense_{kind}"))
    assert dense == {name: how for name, how in topk.items() if name not in extra}
    assert set(topk) - set(dense) == extra


@pytest.mark.parametrize("name", TRIOS)
def test_data_are_positional_only_and_options_keyword_only(name: str) -> None:
    found = parameters(getattr(topk_np, name))
    data = DATA.get(name) or DATA[name.split("_")[1]]
    assert list(found)[:3] == data
    for parameter, (kind, _) in found.items():
        if parameter in data:
            assert kind is inspect.Parameter.POSITIONAL_ONLY
        else:
            assert kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


def test_gradients_are_in_the_order_of_the_arguments() -> None:
    assert topk_np.AttentionGrads._fields == ("query", "key", "value", "bias")
    expected = ("x", "keys", "values", "key_bias", "value_bias", "gate")
    assert topk_np.FFNGrads._fields == expected
    order = [name for name in parameters(topk_np.topk_ffn) if name in expected]
    assert tuple(order) == expected
    assert list(topk_np.MultiheadGrads._fields) == [*DATA["multihead_attention"], "bias"]


def test_importing_the_package_imports_nothing_heavy() -> None:
    command = "import sys, topk_np; print(*sorted(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    loaded = {name for name in ran.stdout.split() if name.startswith(HEAVY)}
    assert loaded == set()


@pytest.mark.parametrize("name", ["topk_np", *MODULES])
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", [n for n in PUBLIC if inspect.isfunction(getattr(topk_np, n))])
def test_public_functions_have_an_example_and_say_what_they_take_and_return(name: str) -> None:
    text = inspect.getdoc(getattr(topk_np, name)) or ""
    for section in ("Returns", "Examples"):
        assert f"\n{section}\n---" in text, section
    if not name.endswith("_fwd"):  # those refer to the function they belong to
        for section in ("Parameters", "Raises"):
            assert f"\n{section}\n---" in text, section
        documented = [
            parameter
            for parameter in parameters(getattr(topk_np, name))
            if re.search(rf"^(\w+, )*\*?{parameter}(, \w+)* : ", text, re.MULTILINE)
            or f"\n**{parameter}\n" in text
        ]
        assert documented == list(parameters(getattr(topk_np, name)))


FLOORS = (  # of the folders and files of the package, from below
    ("_namespace",),
    ("_vjp", "kernels"),
    ("activations",),
    ("options",),
    ("schedule",),
    ("core",),
    ("attention", "ffn", "planning", "selection"),
    ("decoding",),
    ("baselines", "dask", "diagnostics", "interop", "layers", "testing"),
    ("_plots", "_process"),
    ("fetch",),
    ("training",),
    ("models", "tasks"),
    # From here on programs, which nothing of the library imports.
    ("bench", "qa", "runs", "selftest"),
    ("studies",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
PACKAGE = Path(topk_np.__file__).parent
SOURCES = {
    ".".join(path.with_suffix("").relative_to(PACKAGE.parent).parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(name: str, nodes: Iterable[ast.AST]) -> set[str]:
    """The modules of ours that some statements of a module import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in SOURCES else node.module for one in within}
    return (found & SOURCES.keys()) - {name}


def tree_of(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


def floor_of(name: str) -> int:
    folder = name.split(".")[1]
    floor = next((i for i, floor in enumerate(FLOORS) if folder in floor), None)
    assert floor is not None, f"{folder} is on no floor: add it to FLOORS"
    return floor


def test_no_module_knows_of_one_above_it() -> None:
    for name in SOURCES.keys() - {"topk_np"}:
        others = imported(name, ast.walk(tree_of(name))) - {"topk_np"}
        above = {other for other in others if floor_of(other) > floor_of(name)}
        assert not above, f"{name} imports {above}"


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph = {name: imported(name, tree_of(name).body) for name in SOURCES}
    list(TopologicalSorter(graph).static_order())  # raises, and names the circle


def test_nothing_above_the_engines_asks_for_the_array_library() -> None:
    """Nor for an engine by its name: what was found out is passed on with the call."""
    for name in SOURCES.keys() - {"topk_np"}:
        if floor_of("topk_np.kernels") < floor_of(name) <= floor_of("topk_np.attention"):
            nodes = list(ast.walk(tree_of(name)))
            names = {getattr(node, "id", None) or getattr(node, "attr", None) for node in nodes}
            assert not names & {"is_numpy", "is_cupy", "is_portable"}, name
            engines = {other for other in imported(name, nodes) if ".kernels." in other}
            assert engines <= {"topk_np.kernels.tuning"}, name


def test_no_docstring_opens_with_a_clause_that_has_no_subject() -> None:
    """ "What it does" is no sentence: a docstring opens with a noun phrase or a verb."""
    headless = re.compile(r"(What|How|Whether|Where|Which|Who|When)\b")
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                docstring = ast.get_docstring(node) or ""
                if headless.match(docstring):
                    found.append(f"{path.relative_to(PACKAGE)}: {docstring.splitlines()[0]}")
    assert found == []
