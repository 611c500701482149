"""`f` made from `f_fwd`: its signature, its docstring, its types, and whose name errors have."""

from __future__ import annotations

import inspect
import pickle
import traceback
from collections.abc import Callable
from typing import Any, Unpack

import pytest

from topk_np._vjp import output_of, residuals_on_demand
from topk_np.options.check import AttentionOptions, spell_out


def double_fwd(x: float, /, offset: float = 0.0, *, factor: float = 2.0) -> tuple[float, str]:
    """`double`, and its residuals."""
    if factor == 0:
        raise TypeError("factor must not be 0")
    return factor * x + offset, "kept"


@output_of(double_fwd)
def double() -> float:
    """Twice a number."""
    raise AssertionError("never run")


KEPT: list[bool] = []


@spell_out(AttentionOptions)
@residuals_on_demand
def attend_fwd(
    keep: bool, x: float, y: float, /, *, lse: bool = False, **options: Unpack[AttentionOptions]
) -> tuple[Any, str | None]:
    """`attend`, and its residuals."""
    KEPT.append(keep)
    out = x + y
    return ((out, len(options)) if lse else out), ("kept" if keep else None)


@output_of(attend_fwd)
def attend() -> Any:
    """Attention, and a pair with `lse`."""


def test_f_gives_the_output_of_f_fwd() -> None:
    assert double(3.0) == double_fwd(3.0)[0] == 6.0
    assert double(3.0, 1.0, factor=5.0) == double_fwd(3.0, 1.0, factor=5.0)[0] == 16.0


def test_residuals_on_demand_are_kept_for_f_fwd_only_and_out_may_be_a_pair() -> None:
    KEPT.clear()
    assert attend_fwd(1.0, 2.0) == (3.0, "kept")
    assert attend(1.0, 2.0) == 3.0
    assert attend(1.0, 2.0, lse=True, is_causal=True) == (3.0, 1)
    assert KEPT == [True, False, False]


@pytest.mark.parametrize(("f", "fwd"), [(double, double_fwd), (attend, attend_fwd)])
def test_f_has_the_parameters_of_f_fwd_and_a_docstring_and_name_of_its_own(
    f: Callable[..., Any], fwd: Callable[..., Any]
) -> None:
    signature = inspect.signature(f)
    assert signature.parameters == inspect.signature(fwd).parameters
    assert "keep" not in signature.parameters
    assert fwd.__name__ == f"{f.__name__}_fwd"
    assert (f.__doc__ or "").splitlines()[0] != (fwd.__doc__ or "").splitlines()[0]
    assert f.__module__ == __name__
    assert pickle.loads(pickle.dumps(f)) is f


def test_signatures_say_what_is_returned_and_have_the_options_spelled_out() -> None:
    assert inspect.signature(double).return_annotation == "float"
    assert inspect.signature(attend_fwd).return_annotation == "tuple[Any, str]"
    shown = list(inspect.signature(attend).parameters)
    assert shown == ["x", "y", "lse", *AttentionOptions.__annotations__]


@pytest.mark.parametrize(
    ("f", "arguments", "options", "message"),
    [
        (double, (), {}, r"double\(\): missing a required .*'x'"),
        (double, (1, 2, 3), {}, r"double\(\): too many positional arguments"),
        (double, (1,), {"factors": 2}, r"double\(\): got an unexpected keyword .*'factors'"),
        (attend, (1,), {}, r"attend\(\): missing a required .*'y'"),
        (attend, (1, 2, 3), {}, r"attend\(\): too many positional arguments"),
        (attend_fwd, (1, 2, 3), {}, r"attend_fwd\(\): too many positional arguments"),
    ],
)
def test_errors_in_the_arguments_name_the_function_that_was_called(
    f: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        f(*arguments, **options)


def test_errors_from_within_are_passed_on_and_the_traceback_names_both_functions() -> None:
    with pytest.raises(TypeError, match=r"^factor must not be 0$") as caught:
        double(1.0, factor=0.0)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[1:] == ["double", "double_fwd"]
