"""Inputs share one library, one device and one floating dtype, or are refused by name."""

from __future__ import annotations

from typing import Any

import array_api_strict
import ml_dtypes
import numpy as np
import pytest

import topk_np
from tests.backends import Backend, selected_backends
from topk_np._namespace import array_namespace, cast, check_floats, compute_dtype, nbytes, plain

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def test_the_namespace_is_found_from_the_arrays(xp: Backend) -> None:
    array = xp.asarray(np.ones(3))
    found = array_namespace(array, None, array)
    assert found.__name__.removeprefix("array_api_compat.") == xp.xp.__name__
    assert topk_np.array_namespace is array_namespace


def test_no_array_is_refused() -> None:
    with pytest.raises(TypeError, match="expected at least one array, got none"):
        array_namespace(None)


@pytest.mark.parametrize(
    ("thing", "shown"),
    [
        ([1.0, 2.0], r"\[1.0, 2.0\] \(list\)"),
        (1.0, r"1.0 \(float\)"),
        ("a", r"'a' \(str\)"),
        (np.float64(1), r"np.float64\(1.0\) \(float64\)"),
        (list(range(100)), "list$"),
        (np.ma.masked_array([1.0]), "MaskedArray"),
    ],
)
def test_what_is_not_an_array_is_refused_and_shown(thing: object, shown: str) -> None:
    with pytest.raises(TypeError, match=rf"argument 1 must be .*array.*got .*{shown}"):
        array_namespace(np.ones(2), thing)


def test_mixed_libraries_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"argument 1 must .* argument 0, numpy, got array_api_strict"
    ):
        array_namespace(np.ones(2), array_api_strict.ones(2))


def test_mixed_devices_are_refused() -> None:
    here = array_api_strict.ones(2)
    there = array_api_strict.ones(2, device=array_api_strict.Device("device1"))
    with pytest.raises(TypeError, match=r"key must be on the device of query, .*CPU.*got.*device1"):
        check_floats({"query": here, "key": there})


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_floating_dtype_is_taken(dtype: type) -> None:
    assert check_floats({"x": np.ones(2, dtype)}, {"y": None}) is np


def test_only_optional_arrays_may_be_left_out() -> None:
    with pytest.raises(TypeError, match=r"y must be an array .*got None"):
        check_floats({"x": np.ones(2), "y": None})


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex128", "object", "longdouble", ">f4"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(TypeError, match=r"x must have dtype float16, bfloat16, float32 or float64"):
        check_floats({"x": np.ones(2, dtype)})


def test_mixed_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="key must have the dtype of query, float64, got float32"):
        check_floats({"query": np.ones(2), "key": np.ones(2, np.float32)})


@pytest.mark.parametrize("dtype", FLOATS)
def test_half_precision_is_computed_in_float32_and_the_rest_as_it_is(dtype: type) -> None:
    expected = np.float32 if np.dtype(dtype).itemsize == 2 else dtype
    assert np.dtype(compute_dtype(np, np.ones(2, dtype))) == expected


def test_cast_copies_only_where_the_dtype_changes() -> None:
    x = np.ones(2)
    assert cast(np, x, np.dtype("float64")) is x
    assert cast(np, x, np.float32).dtype == np.float32


def test_subclasses_lose_their_class_but_not_their_memory() -> None:
    class Tagged(np.ndarray):
        pass

    x = np.ones(2).view(Tagged)
    assert type(plain(x)) is np.ndarray
    assert np.shares_memory(plain(x), x)


def test_the_selected_backends_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_NP_BACKENDS", "strict, numpy")
    assert [backend.name for backend in selected_backends()] == ["strict", "numpy"]
    monkeypatch.setenv("TOPK_NP_BACKENDS", "tensorflow")
    with pytest.raises(ValueError, match="tensorflow"):
        selected_backends()


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "int32", "float32", "int64"])
def test_nbytes_follows_the_dtype(dtype: Any) -> None:
    array = np.zeros((3, 5), dtype)
    assert nbytes(array) == array.nbytes
