"""All engines are called alike, and each array library gets its own."""

from __future__ import annotations

import ast
import importlib
import inspect
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from tests.backends import Backend
from tests.kernels.engines import Engine
from topk_np._namespace import array_namespace
from topk_np.kernels import engine as engine_of
from topk_np.kernels import portable

PRIMITIVES = (
    "add_slots",
    "erf",
    "gather_matmul",
    "hide",
    "hide_outside",
    "masked_matmul",
    "pattern",
    "product",
    "relu",
    "relu_vjp",
    "sampled_matmul",
    "scatter_matmul",
    "select",
    "softmax",
    "softmax_vjp",
    "take_slots",
    "tanh",
    "threefry",
    "toeplitz",
    "zero_hidden",
)
CONSTANTS = ("DOUBLE", "MAY_WAIT", "THREADS", "WHOLE_BUDGET")
METHODS = ("__init__", "add", "result")  # of RunningTopK


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Names, defaults and kinds of a function's parameters."""
    found = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.default, parameter.kind) for parameter in found]


def test_an_engine_has_the_functions_and_constants_of_the_definition(engine: Engine) -> None:
    for name in PRIMITIVES:
        expected = parameters(getattr(portable, name))
        assert parameters(getattr(engine.module, name)) == expected, name
    for name in METHODS:
        expected = parameters(getattr(portable.RunningTopK, name))
        assert parameters(getattr(engine.module.RunningTopK, name)) == expected, name
    for name in CONSTANTS:
        assert isinstance(getattr(engine.module, name), bool), name


def functions(module: str) -> dict[str, str]:
    """The public functions of an engine and their parameters, read without importing it."""
    source = files("topk_np.kernels").joinpath(f"{module}.py").read_text()
    return {
        node.name: ", ".join(argument.arg for argument in node.args.args)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def test_the_engine_for_cupy_has_the_same_functions_where_there_is_no_cupy() -> None:
    expected, found = functions("portable"), functions("cupy")
    assert sorted({*expected, "threefry"}) == list(PRIMITIVES)  # which portable imports
    assert found.pop("threefry") == "key, counter"
    assert found == expected


def test_each_library_gets_its_own_engine_and_others_the_portable_one(xp: Backend) -> None:
    expected = {"numpy": "numpy", "cupy": "cupy"}.get(xp.name, "portable")
    found = engine_of(array_namespace(xp.asarray(np.ones(1))))
    assert found.__name__ == f"topk_np.kernels.{expected}"


def test_the_portable_engine_can_be_forced(xp: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_NP_KERNELS", "portable")
    assert engine_of(array_namespace(xp.asarray(np.ones(1)))) is portable


@pytest.mark.parametrize("chosen", ["numpy", "atomic"])
def test_a_choice_speaks_for_its_own_library_alone(
    xp: Backend, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    namespace = array_namespace(xp.asarray(np.ones(1)))
    usual = engine_of(namespace)
    monkeypatch.setenv("TOPK_NP_KERNELS", chosen)
    if (xp.name, chosen) == ("cupy", "atomic"):
        usual = importlib.import_module("topk_np.kernels.cupy").atomic
    assert engine_of(namespace) is usual


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_NP_KERNELS", "fastest")
    with pytest.raises(ValueError, match=r"'numpy', 'portable' or 'atomic' .*, got 'fastest'"):
        engine_of(np)
