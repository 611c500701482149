"""The work of ``python -m topk_np check``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from topk_np.testing.attention import check_attention
from topk_np.testing.ffn import check_ffn
from topk_np.testing.libraries import CannotCheck
from topk_np.testing.report import Report
from topk_np.testing.topk import check_topk

CHECKS: dict[str, Callable[..., Report]] = {
    "attention": check_attention,
    "ffn": check_ffn,
    "topk": check_topk,
}


def run(target: str, *, kind: str, options: Sequence[str], **how: Any) -> bool:
    """
    Check an implementation and print the report.

    Parameters
    ----------
    target : str
        ``module:function``. Where the module has ``function_fwd`` and ``function_bwd`` too, they
        are taken for its backward pass.
    kind : {"attention", "ffn", "topk"}
        What it computes.
    options : sequence of str
        To try beside those that its signature names.
    **how
        What the function of that kind takes.

    Returns
    -------
    bool
        Whether no property failed.

    Raises
    ------
    CannotCheck
        If there is no such function, or it cannot be checked.
    """
    function, pair = _find(target)
    if kind != "attention":
        del how["leading_axes"]
    if kind != "topk":
        how.update(pair)
    try:
        report = CHECKS[kind](function, options=options, **how)
    except (TypeError, ValueError) as error:
        raise CannotCheck(str(error)) from error
    print(f"{target}\n\n{report}")
    return report.passed


def _find(target: str) -> tuple[Any, dict[str, Any]]:
    """The function, and its backward pass by the names of arguments."""
    path, _, name = target.partition(":")
    if not path or not name:
        raise CannotCheck(f"expected MODULE:FUNCTION, got {target!r}")
    if os.getcwd() not in sys.path:  # as it is for `python -m`
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # a script that exits as it is read
        raise CannotCheck(f"cannot import {path}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise CannotCheck(f"{path} has no function {name}")
    pair = {end: getattr(module, f"{name}_{end}", None) for end in ("fwd", "bwd")}
    return function, pair if all(map(callable, pair.values())) else {}
