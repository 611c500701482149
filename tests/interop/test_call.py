"""Taking the arrays out of a call and putting others in their place."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

from topk_np.interop.call import Call


class Pair(NamedTuple):
    first: Any
    second: Any = None


@dataclass(frozen=True)
class Table:
    table: Any
    width: int = 3


class Grads(NamedTuple):
    x: Any
    weights: Any
    bias: Any = None


def a_call() -> Call:
    return Call(
        (np.zeros(1), Pair(np.zeros(2), None)),
        {"k": 3, "mask": np.ones(3, bool), "bias": Table(np.zeros(4)), "window": (1, None)},
    )


def test_arrays_are_found_in_arguments_options_tuples_and_dataclasses() -> None:
    assert [array.size for array in a_call().arrays(np.ndarray)] == [1, 2, 3, 4]


def test_other_arrays_take_their_place_and_all_else_stays() -> None:
    call = a_call()
    changed = call.with_arrays(np.ndarray, [np.full(1, i) for i in range(4)])
    assert [int(array[0]) for array in changed.arrays(np.ndarray)] == [0, 1, 2, 3]
    assert isinstance(changed.args[1], Pair)
    assert changed.args[1].second is None
    assert isinstance(changed.options["bias"], Table)
    assert changed.options["bias"].width == 3
    assert changed.options["k"] == 3
    assert changed.options["window"] == (1, None)
    assert [array.size for array in call.arrays(np.ndarray)] == [1, 2, 3, 4]


def test_a_dataclass_without_arrays_stays_the_same_object() -> None:
    table = Table(None)
    assert Call((), {"bias": table}).with_arrays(np.ndarray, []).options["bias"] is table


def test_gradients_go_by_position_then_by_name_and_into_tuples() -> None:
    x, weights, bias = np.full(1, 1.0), np.full(2, 2.0), np.full(4, 3.0)
    found = a_call().gradients(Grads(x, Pair(weights), bias))
    assert found[0] is x
    assert found[1] is weights
    assert found[2] is None  # the mask
    assert found[3] is bias


def test_a_plain_tuple_of_gradients_has_those_of_the_arguments() -> None:
    found = a_call().gradients((np.zeros(1),))
    assert [grad is None for grad in found] == [False, True, True, True]


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_without_the_framework_the_error_says_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, f"topk_np.interop.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'topk_np\[{name}\]'"):
        importlib.import_module(f"topk_np.interop.{name}")


def test_the_package_and_interop_import_no_framework() -> None:
    command = "import sys, topk_np, topk_np.interop.call; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert not {"jax", "torch"} & set(ran.stdout.split())
