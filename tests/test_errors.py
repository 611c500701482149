"""Every error names the argument, shows what came and says what is allowed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import pytest

import topk_np
from topk_np import ALiBi, T5Bias

ATTENTION = ("topk_attention", "dense_attention")
FFN = ("topk_ffn", "dense_ffn")
FLOATS = "float16, bfloat16, float32 or float64"


def ones(*shape: int, dtype: Any = np.float64) -> np.ndarray:
    return np.ones(shape, dtype)


class Wrong(NamedTuple):
    """One wrong call: what is changed in a right one, and what its error must contain."""

    change: dict[str, Any]
    error: type[Exception]
    names: str
    shows: str
    allows: str


FIRST = {"query_offset": 0}
ONE: Any = 1

INTEGER_OPTIONS = [
    Wrong({name: value}, error, name, shown, allowed)
    for name in ("chunk_size", "memory_budget", "workers")
    for value, error, shown, allowed in (
        (0, ValueError, "got 0", "at least 1,"),
        (-3, ValueError, "-3", "at least "),
        (2.0, TypeError, "2.0 (float)", "integer"),
        (True, TypeError, "True (bool)", "integer"),
        ("4", TypeError, "'4' (str)", "integer"),
        (ones(2), TypeError, "shape (2,)", "integer"),
    )
]

K = [
    Wrong({"k": 0}, ValueError, "k", "0", "at least 1"),
    Wrong({"k": -1}, ValueError, "k", "-1", "at least 1"),
    Wrong({"k": 1.0}, TypeError, "k", "1.0 (float)", "integer"),
    Wrong({"k": np.float32(2)}, TypeError, "k", "float32", "integer"),
    Wrong({"k": True}, TypeError, "k", "True (bool)", "integer"),
    Wrong({"k": np.bool_(True)}, TypeError, "k", "bool", "integer"),
    Wrong({"k": None}, TypeError, "k", "None", "integer"),
    Wrong({"k": "8"}, TypeError, "k", "'8' (str)", "integer"),
    Wrong({"k": np.asarray(2)}, TypeError, "k", "array(2)", "integer"),
    Wrong({"k": np.asarray([2])}, TypeError, "k", "shape (1,)", "integer"),
]

ATTENTION_CALLS = [
    *INTEGER_OPTIONS,
    Wrong({"query": [[1.0]]}, TypeError, "query", "list", "array"),
    Wrong({"key": 3.0}, TypeError, "key", "3.0 (float)", "array"),
    Wrong({"value": None}, TypeError, "value", "None", "array"),
    Wrong({"query": ones(3, 4, dtype=int)}, TypeError, "query", "int64", FLOATS),
    Wrong({"key": ones(5, 4, dtype=complex)}, TypeError, "key", "complex128", FLOATS),
    Wrong({"value": ones(5, 2, dtype=object)}, TypeError, "value", "object", FLOATS),
    Wrong({"value": ones(5, 2, dtype=">f8")}, TypeError, "value", ">f8", FLOATS),
    Wrong({"key": ones(5, 4, dtype=np.float32)}, TypeError, "key", "float32", "float64"),
    Wrong({"key": array_api_strict.ones((5, 4))}, TypeError, "key", "array_api_strict", "numpy"),
    Wrong({"query": ones(4)}, ValueError, "query", "(4,)", "(..., Q, D)"),
    Wrong({"key": ones(4)}, ValueError, "key", "(4,)", "(..., N, D)"),
    Wrong({"value": ones(5)}, ValueError, "value", "(5,)", "(..., N, V)"),
    Wrong({"key": ones(5, 3)}, ValueError, "key", "3", "4"),
    Wrong({"value": ones(6, 2)}, ValueError, "value", "6", "5"),
    Wrong({"query": ones(2, 3, 4), "key": ones(3, 5, 4)}, ValueError, "key", "(3,)", "broadcast"),
    Wrong({"mask": ones(3, 5)}, TypeError, "mask", "float64", "bool"),
    Wrong({"mask": ones(3, 5, dtype=int)}, TypeError, "mask", "int64", "bool"),
    Wrong({"mask": True}, TypeError, "mask", "True", "array"),
    Wrong({"mask": [[True]]}, TypeError, "mask", "[[True]]", "array"),
    Wrong({"mask": ones(3, 4, dtype=bool)}, ValueError, "mask", "(3, 4)", "(3, 5)"),
    Wrong({"mask": ones(1, 3, 5, dtype=bool)}, ValueError, "mask", "(1, 3, 5)", "(3, 5)"),
    Wrong(
        {"mask": array_api_strict.ones((3, 5), dtype=array_api_strict.bool)},
        TypeError,
        "mask",
        "array_api_strict",
        "numpy",
    ),
    Wrong({"is_causal": 1}, TypeError, "is_causal", "1 (int)", "True or False"),
    Wrong({"is_causal": "yes"}, TypeError, "is_causal", "'yes' (str)", "True or False"),
    Wrong({"is_causal": True}, ValueError, "query_offset", "3 queries and 5 keys", "required"),
    Wrong({"window": (1, 1)}, ValueError, "query_offset", "3 queries and 5 keys", "window"),
    Wrong({"window": 3}, TypeError, "window", "int", "(left, right)"),
    Wrong({"window": (1, 2, 3)}, ValueError, "window", "3 entries", "(left, right)"),
    Wrong({"window": (-1, 0)}, ValueError, "window's left", "-1", "at least 0"),
    Wrong({"window": (0, 1.5)}, TypeError, "window's right", "1.5 (float)", "integer"),
    Wrong({"mask": lambda i, j: j < i}, ValueError, "query_offset", "mask function", "required"),
    Wrong({"mask": lambda i, j: i + j, "query_offset": 0}, TypeError, "mask", "int64", "boolean"),
    Wrong(
        {"mask": lambda i, j: i[0, 0] == j[0, :2], "query_offset": 0},
        ValueError,
        "what mask returns",
        "(2,)",
        "(3, 5)",
    ),
    Wrong({"query_offset": 1.5}, TypeError, "query_offset", "1.5 (float)", "integer"),
    Wrong({"query_offset": True}, TypeError, "query_offset", "True (bool)", "integer"),
    Wrong({"query_offset": ones(1)}, TypeError, "query_offset", "float64", "integer"),
    Wrong({"query_offset": ones(2, dtype=int)}, ValueError, "query_offset", "(2,)", "broadcast"),
    Wrong({"query_lengths": 4}, ValueError, "query_lengths", "got 4", "from 0 to 3"),
    Wrong({"key_lengths": -1}, ValueError, "key_lengths", "got -1", "from 0 to 5"),
    Wrong({"key_lengths": 1.0}, TypeError, "key_lengths", "1.0 (float)", "integer"),
    Wrong({"key_lengths": ones(1)}, TypeError, "key_lengths", "float64", "integer"),
    Wrong({"key_lengths": ones(2, dtype=int)}, ValueError, "key_lengths", "(2,)", "broadcast"),
    Wrong({"bias": 1.0}, TypeError, "bias", "1.0 (float)", "array"),
    Wrong({"bias": ones(3, 5, dtype=bool)}, TypeError, "bias", "bool", FLOATS),
    Wrong({"bias": ones(3, 5, dtype="f4")}, TypeError, "bias", "float32", "float64"),
    Wrong({"bias": ones(5, 3)}, ValueError, "bias", "(5, 3)", "(3, 5)"),
    Wrong({"bias": array_api_strict.ones(5)}, TypeError, "bias", "array_api_strict", "numpy"),
    Wrong({"bias": lambda i, j: i - j}, ValueError, "query_offset", "a bias", "required"),
    Wrong({"bias": lambda i, j: i < j, "query_offset": 0}, TypeError, "bias", "bool", "numbers"),
    Wrong({"bias": ALiBi(ones(1))}, ValueError, "query_offset", "a bias", "required"),
    Wrong({"bias": ALiBi(ones(2)), **FIRST}, ValueError, "bias.slopes", "(2,)", "broadcast"),
    Wrong({"bias": ALiBi([0.5]), **FIRST}, TypeError, "bias.slopes", "list", "array"),
    Wrong({"bias": ALiBi(ones(dtype=int)), **FIRST}, TypeError, "bias.slopes", "int64", "floating"),
    Wrong({"bias": T5Bias(ones(3)), **FIRST}, ValueError, "bias.table", "got 3", "at least 4"),
    Wrong({"bias": T5Bias(ones(8, 2)), **FIRST}, ValueError, "bias.table", "(2,)", "broadcast"),
    Wrong({"bias": T5Bias(ones(8, dtype="f4")), **FIRST}, TypeError, "bias.table", "f", "float64"),
    Wrong({"bias": T5Bias(ones(8), ONE), **FIRST}, TypeError, "bias.bidirectional", "1", "True"),
    Wrong({"bias": T5Bias(ones(8), True, 2), **FIRST}, ValueError, "bias.max_d", "2", "at least 3"),
    Wrong({"softcap": 0.0}, ValueError, "softcap", "0.0", "above 0"),
    Wrong({"softcap": -3}, ValueError, "softcap", "-3", "above 0"),
    Wrong({"softcap": True}, TypeError, "softcap", "True (bool)", "real number"),
    Wrong({"dropout": 0.1}, TypeError, "dropout", "float", "(rate, seed)"),
    Wrong({"dropout": (0.1,)}, ValueError, "dropout", "1 entries", "(rate, seed)"),
    Wrong({"dropout": (1.0, 0)}, ValueError, "dropout's rate", "1.0", "below 1"),
    Wrong({"dropout": (-0.1, 0)}, ValueError, "dropout's rate", "-0.1", "at least 0"),
    Wrong({"dropout": ("a", 0)}, TypeError, "dropout's rate", "'a' (str)", "real number"),
    Wrong({"dropout": (0.1, 0.5)}, TypeError, "dropout's seed", "0.5 (float)", "integer"),
    Wrong({"dropout": (0.1, -1)}, ValueError, "dropout's seed", "-1", "at least 0"),
    Wrong({"dropout": (0.1, 2**64)}, ValueError, "dropout's seed", str(2**64), "below 2^64"),
    Wrong({"always_keep": 4}, TypeError, "always_keep", "int", "(sinks, local)"),
    Wrong({"always_keep": (1, 2, 3)}, ValueError, "always_keep", "3 entries", "(sinks, local)"),
    Wrong({"always_keep": (-1, 0)}, ValueError, "always_keep's sinks", "-1", "at least 0"),
    Wrong({"always_keep": (0, 1.0)}, TypeError, "always_keep's local", "1.0 (float)", "integer"),
    Wrong({"always_keep": (0, 1)}, ValueError, "query_offset", "always_keep", "required"),
    Wrong({"softcap": 1e-40}, ValueError, "softcap", "1e-40", "finite"),
    Wrong({"mask": lambda i, j: None, **FIRST}, TypeError, "mask", "None", "array"),
    Wrong({"bias": lambda i, j: None, **FIRST}, TypeError, "bias", "None", "array"),
    Wrong({"bias": ALiBi, **FIRST}, TypeError, "bias", "the class ALiBi", "instance"),
    Wrong({"bias": ALiBi(None), **FIRST}, TypeError, "bias.slopes", "None", "array"),
    Wrong({"bias": T5Bias(ones(8), True, 2**63), **FIRST}, ValueError, "max_d", "92", "below 2^31"),
    Wrong({"return_lse": 1}, TypeError, "return_lse", "1 (int)", "True or False"),
    Wrong({"maks": None}, TypeError, "maks", "unexpected", "mask, is_causal"),
    Wrong({"scale": "big"}, TypeError, "scale", "'big' (str)", "real number"),
    Wrong({"scale": True}, TypeError, "scale", "True (bool)", "real number"),
    Wrong({"scale": ones(1)}, TypeError, "scale", "shape (1,)", "real number"),
    Wrong({"scale": float("nan")}, ValueError, "scale", "nan", "finite"),
    Wrong({"scale": float("inf")}, ValueError, "scale", "inf", "finite"),
    Wrong({"scale": 10**400}, ValueError, "scale", "inf", "finite"),
    Wrong({"scale": -1e39}, ValueError, "scale", "-1e+39", "finite"),
]

FFN_CALLS = [
    *INTEGER_OPTIONS,
    Wrong({"x": [1.0]}, TypeError, "x", "list", "array"),
    Wrong({"keys": ones(6, 4, dtype=int)}, TypeError, "keys", "int64", FLOATS),
    Wrong({"gate": ones(6, 4, dtype=np.float32)}, TypeError, "gate", "float32", "float64"),
    Wrong({"key_bias": [0.0]}, TypeError, "key_bias", "list", "array"),
    Wrong({"value_bias": array_api_strict.ones(2)}, TypeError, "value_bias", "array_api", "numpy"),
    Wrong({"x": ones()}, ValueError, "x", "()", "(..., D)"),
    Wrong({"keys": ones(4)}, ValueError, "keys", "(4,)", "(F, D)"),
    Wrong({"keys": ones(2, 6, 4)}, ValueError, "keys", "(2, 6, 4)", "(F, D)"),
    Wrong({"values": ones(6)}, ValueError, "values", "(6,)", "(F, V)"),
    Wrong({"keys": ones(6, 5)}, ValueError, "keys", "5", "4"),
    Wrong({"values": ones(7, 2)}, ValueError, "values", "7", "6"),
    Wrong({"gate": ones(6, 3)}, ValueError, "gate", "(6, 3)", "(6, 4)"),
    Wrong({"key_bias": ones(5)}, ValueError, "key_bias", "(5,)", "(6,)"),
    Wrong({"key_bias": ones(1, 6)}, ValueError, "key_bias", "(1, 6)", "(6,)"),
    Wrong({"value_bias": ones(3)}, ValueError, "value_bias", "(3,)", "(2,)"),
    Wrong({"activation": "swish"}, ValueError, "activation", "'swish'", "'gelu_tanh'"),
    Wrong({"activation": np.tanh}, TypeError, "activation", "tanh", "'relu'"),
]

RULES = [
    Wrong({"p": 0.5}, ValueError, "k", "k=2 and p=0.5", "not both"),
    Wrong({"k": None, "p": 0.5}, ValueError, "max_k", "None", "required"),
    Wrong({"k": None, "p": 0.0, "max_k": 2}, ValueError, "p", "0.0", "above 0 and at most 1"),
    Wrong({"k": None, "p": 1.1, "max_k": 2}, ValueError, "p", "1.1", "above 0 and at most 1"),
    Wrong({"k": None, "p": True, "max_k": 2}, TypeError, "p", "True (bool)", "real number"),
    Wrong({"k": None, "p": 0.5, "max_k": 0}, ValueError, "max_k", "0", "at least 1"),
    Wrong({"k": None, "p": 0.5, "max_k": 2.0}, TypeError, "max_k", "2.0 (float)", "integer"),
    Wrong({"max_k": 3}, ValueError, "max_k", "max_k=3", "p"),
]

SELECT = [
    Wrong({"select": "random"}, ValueError, "select", "'random'", "'activation', 'score'"),
    Wrong({"select": None}, TypeError, "select", "None", "'activation', 'score'"),
]

TOP_K = [
    *K,
    Wrong({"x": [1.0, 2.0]}, TypeError, "x", "list", "array"),
    Wrong({"x": ones(3, dtype=int)}, TypeError, "x", "int64", FLOATS),
    Wrong({"axis": 1}, ValueError, "axis", "got 1", "1 axes"),
    Wrong({"axis": -2}, ValueError, "axis", "got -2", "1 axes"),
    Wrong({"axis": None}, TypeError, "axis", "None", "integer"),
    Wrong({"x": ones()}, ValueError, "axis", "got -1", "0 axes"),
    Wrong({"sorted": "yes"}, TypeError, "sorted", "'yes' (str)", "True or False"),
]

RIGHT: dict[str, dict[str, Any]] = {
    "attention": {"query": ones(3, 4), "key": ones(5, 4), "value": ones(5, 2)},
    "ffn": {"x": ones(3, 4), "keys": ones(6, 4), "values": ones(6, 2)},
    "top_k": {"x": ones(3)},
}


def cases() -> Iterator[Any]:
    """Each wrong call of each function it is wrong for."""
    for name in (*ATTENTION, *FFN, "top_k"):
        kind = name.rpartition("_")[2] if name != "top_k" else name
        wrongs = {"attention": ATTENTION_CALLS, "ffn": FFN_CALLS, "top_k": TOP_K}[kind]
        more = [*K, *(SELECT if kind == "ffn" else RULES)] if name.startswith("topk") else []
        for wrong in [*wrongs, *more]:
            text = "-".join(f"{n}={_brief(v)}" for n, v in wrong.change.items())
            yield pytest.param(name, kind, wrong, id=f"{name}-{text}")


def _brief(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"{type(value).__name__}{tuple(value.shape)}{value.dtype}".replace(" ", "")
    return str(getattr(value, "__name__", value))


def call(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Call with positional-only arguments taken out of a dictionary by name."""
    given = dict(given)
    positional = [
        given.pop(parameter.name)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY
    ]
    return function(*positional, **given)


@pytest.mark.parametrize(("name", "kind", "wrong"), list(cases()))
def test_a_wrong_argument_is_named_shown_and_set_right(name: str, kind: str, wrong: Wrong) -> None:
    right = dict(RIGHT[kind])
    if name.startswith("top"):
        right["k"] = 2
    functions = [name] if kind == "top_k" else [name, f"{name}_fwd"]
    for function in functions:
        with pytest.raises(wrong.error) as caught:
            call(getattr(topk_np, function), {**right, **wrong.change})
        assert type(caught.value) is wrong.error
        message = str(caught.value)
        for part in (wrong.names, wrong.shows, wrong.allows):
            assert part in message, message


@pytest.mark.parametrize("name", [*ATTENTION, *FFN])
@pytest.mark.parametrize(
    ("dout", "error", "shows", "allows"),
    [
        ([[1.0]], TypeError, "list", "array"),
        (None, TypeError, "None", "array"),
        (ones(3, 2, dtype=np.float32), TypeError, "float32", "float64"),
        (ones(3, 2, dtype=int), TypeError, "int64", "float64"),
        (array_api_strict.ones((3, 2)), TypeError, "array_api_strict", "numpy"),
        (ones(3, 1), ValueError, "(3, 1)", "(3, 2)"),
        (ones(2), ValueError, "(2,)", "(3, 2)"),
        (ones(1, 3, 2), ValueError, "(1, 3, 2)", "(3, 2)"),
    ],
    ids=lambda value: _brief(value) if hasattr(value, "shape") else None,
)
def test_a_wrong_output_gradient_is_named_shown_and_set_right(
    name: str, dout: Any, error: type[Exception], shows: str, allows: str
) -> None:
    right = {**RIGHT[name.rpartition("_")[2]], **({"k": 2} if name.startswith("top") else {})}
    _, residuals = call(getattr(topk_np, f"{name}_fwd"), right)
    with pytest.raises(error) as caught:
        getattr(topk_np, f"{name}_bwd")(residuals, dout)
    for part in ("dout", shows, allows):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize(
    ("dout", "error", "shows"),
    [
        (ones(3, 2), TypeError, "ndarray"),
        ((ones(3, 2),), TypeError, "got 1"),
        ((ones(3, 2), None), TypeError, "dlse"),
        ((ones(3, 2), ones(3, 1)), ValueError, "(3, 1)"),
        ((ones(3, 2), ones(3, dtype=np.float32)), TypeError, "float32"),
    ],
)
def test_after_return_lse_the_gradient_is_a_pair(
    name: str, dout: Any, error: type[Exception], shows: str
) -> None:
    more = {"k": 2} if name.startswith("top") else {}
    given = {**RIGHT["attention"], **more, "return_lse": True}
    _, residuals = call(getattr(topk_np, f"{name}_fwd"), given)
    with pytest.raises(error) as caught:
        getattr(topk_np, f"{name}_bwd")(residuals, dout)
    assert shows in str(caught.value)


@pytest.mark.parametrize(("lengths", "shown"), [([-1, 3], "got -1"), ([1, 9], "got 9")])
def test_of_the_lengths_of_several_heads_the_wrong_one_is_shown(
    lengths: list[int], shown: str
) -> None:
    x = ones(2, 5, 4)
    with pytest.raises(ValueError, match=f"key_lengths must be from 0 to 5, {shown}"):
        topk_np.topk_attention(x, x, x, k=1, key_lengths=np.asarray(lengths))


@pytest.mark.parametrize("name", [*ATTENTION, *FFN])
@pytest.mark.parametrize("other", [*ATTENTION, *FFN, "nothing"])
def test_residuals_of_another_function_are_refused(name: str, other: str) -> None:
    if other == name:
        return
    residuals: Any = None
    if other != "nothing":
        right = RIGHT[other.rpartition("_")[2]]
        more = {"k": 2} if other.startswith("top") else {}
        _, residuals = call(getattr(topk_np, f"{other}_fwd"), {**right, **more})
    with pytest.raises(TypeError) as caught:
        getattr(topk_np, f"{name}_bwd")(residuals, ones(3, 2))
    for part in ("residuals", f"{name}_fwd", type(residuals).__name__):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", [*ATTENTION, *FFN])
def test_a_process_pool_is_refused(name: str) -> None:
    right = {**RIGHT[name.rpartition("_")[2]], **({"k": 2} if name.startswith("top") else {})}
    with ProcessPoolExecutor(1) as pool, pytest.raises(TypeError) as caught:
        call(getattr(topk_np, name), {**right, "workers": pool})
    for part in ("workers", "ProcessPoolExecutor", "integer", "threads"):
        assert part in str(caught.value)


def test_arrays_of_two_devices_are_refused() -> None:
    here = array_api_strict.ones((3, 4))
    there = array_api_strict.ones((3, 4), device=array_api_strict.Device("device1"))
    for inputs in ((here, there, here), (here, here, there)):
        with pytest.raises(TypeError, match=r"must be on the device of query, .*got.*device1"):
            topk_np.topk_attention(*inputs, k=1)
    mask = array_api_strict.ones(
        (3, 3), dtype=array_api_strict.bool, device=array_api_strict.Device("device1")
    )
    with pytest.raises(TypeError, match=r"mask must be on the device of query, .*got.*device1"):
        topk_np.topk_attention(here, here, here, k=1, mask=mask)
    _, residuals = topk_np.topk_attention_fwd(here, here, here, k=1)
    with pytest.raises(TypeError, match=r"dout must be on the device of .*got.*device1"):
        topk_np.topk_attention_bwd(residuals, there)


def test_data_are_positional_only_and_options_keyword_only() -> None:
    x: Any = ones(2, 2)
    with pytest.raises(TypeError):
        topk_np.topk_attention(query=x, key=x, value=x, k=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        topk_np.topk_attention(x, x, x, 1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="windows"):
        topk_np.topk_attention(x, x, x, k=1, windows=3)  # type: ignore[call-arg]
