"""
The trio `f`, `f_fwd`, `f_bwd`: `f` made from `f_fwd`, and a closure made from the other two.

`f_fwd` returns the output and residuals, from which `f_bwd` computes gradients. `f` is not written
out: it is `f_fwd` without the residuals, with the same arguments and a docstring of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from operator import itemgetter
from typing import Any, Concatenate, ParamSpec, TypeVar

from topk_np._namespace import Array

Grads = TypeVar("Grads")
Out = TypeVar("Out")
Kept = TypeVar("Kept")
P = ParamSpec("P")


def vjp(
    fwd: Callable[..., tuple[Array, Any]], bwd: Callable[[Any, Array], Grads], /
) -> Callable[..., tuple[Array, Callable[[Array], Grads]]]:
    """
    Join a forward and a backward function into one that returns a pullback.

    Parameters
    ----------
    fwd : callable
        ``fwd(*arrays, **options) -> (out, residuals)``, such as `topk_attention_fwd`.
    bwd : callable
        ``bwd(residuals, dout) -> gradients``, such as `topk_attention_bwd`.

    Returns
    -------
    callable
        ``f(*arrays, **options) -> (out, pullback)``, where ``pullback(dout)`` gives the gradients
        and may be called any number of times.

    Raises
    ------
    TypeError
        If one of them cannot be called.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import dense_ffn_bwd, dense_ffn_fwd, vjp
    >>> layer = vjp(dense_ffn_fwd, dense_ffn_bwd)
    >>> out, pullback = layer(np.array([2.0, -1.0]), np.eye(2), np.eye(2))
    >>> pullback(np.ones(2)).x
    array([1., 0.])
    """
    check_pair(fwd, bwd)

    def forward_with_pullback(*args: Any, **options: Any) -> tuple[Array, Callable[[Array], Grads]]:
        out, residuals = fwd(*args, **options)
        return out, lambda dout: bwd(residuals, dout)

    return forward_with_pullback


def check_pair(fwd: object, bwd: object) -> None:
    """Check that a forward and a backward function can be called."""
    for name, function in (("fwd", fwd), ("bwd", bwd)):
        if not callable(function):
            raise TypeError(f"{name} must be callable, got {type(function).__name__}")


def output_of(
    fwd: Callable[P, tuple[Out, Any]], /
) -> Callable[[Callable[[], Out]], Callable[P, Out]]:
    """
    Make the first function of a trio from the second: the output of `f_fwd`, without residuals.

    The decorated function states its name, the type of its output and its docstring; parameters
    and body are those of `f_fwd`::

        def linear_fwd(x: Array, weight: Array, /) -> tuple[Array, LinearResiduals]: ...

        @output_of(linear_fwd)
        def linear() -> Array:
            '''The linear layer ``x weightᵀ``. ...'''

    Parameters
    ----------
    fwd : callable
        ``f_fwd(*arrays, **options) -> (out, residuals)``. Its signature becomes that of `f`,
        including the options that `spell_out` shows in it. `out` may be anything, such as the pair
        that attention returns with `return_lse`. If `f` is to cost less than `f_fwd`, decorate
        `f_fwd` with `residuals_on_demand`.

    Returns
    -------
    callable
        The decorator. Type checkers, `help` and the documentation see the parameters of `f_fwd`
        and the docstring of the decorated function; errors and tracebacks have its name.
    """
    run = getattr(fwd, "without_residuals", fwd)

    def decorate(named: Callable[[], Out]) -> Callable[P, Out]:
        returned = named.__annotations__.get("return", inspect.Signature.empty)
        signature = inspect.signature(fwd).replace(return_annotation=returned)
        made: Callable[P, Out] = _call_as(named, signature, run, itemgetter(0))
        return made

    return decorate


def residuals_on_demand(
    run: Callable[Concatenate[bool, P], tuple[Out, Kept | None]], /
) -> Callable[P, tuple[Out, Kept]]:
    """
    Make the second function of a trio from one that is told whether to keep residuals.

    It is for trios whose output alone takes less memory or time than output and residuals::

        @spell_out(AttentionOptions)
        @residuals_on_demand
        def topk_attention_fwd(
            keep: bool, query: Array, key: Array, value: Array, /, *, k: int, ...
        ) -> tuple[Array, TopKAttentionResiduals | None]:
            ...

        @output_of(topk_attention_fwd)
        def topk_attention() -> Array:
            ...

    Parameters
    ----------
    run : callable
        ``run(keep, *arrays, **options) -> (out, residuals)``. The first parameter is positional:
        `f_fwd`, whose signature does not have it, passes True, and `f` passes False, after which
        the residuals may be None.

    Returns
    -------
    callable
        ``f_fwd(*arrays, **options) -> (out, residuals)``, with the name and docstring of `run`.
    """
    signature = inspect.signature(run)
    _, *parameters = signature.parameters.values()
    returned = str(signature.return_annotation).replace(" | None]", "]")
    signature = signature.replace(parameters=parameters, return_annotation=returned)
    made = _call_as(run, signature, partial(run, True))
    made.without_residuals = partial(run, False)
    fwd: Callable[P, tuple[Out, Kept]] = made
    return fwd


def _call_as(
    named: Callable[..., Any],
    signature: inspect.Signature,
    run: Callable[..., Any],
    pick: Callable[[Any], Any] | None = None,
) -> Any:
    """Call `run`, and pick from its result, under the name and docstring of another function."""

    def call(*args: Any, **options: Any) -> Any:
        try:
            result = run(*args, **options)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                refuse(args, options)  # the arguments do not fit: `run` was not entered
            raise
        return result if pick is None else pick(result)

    def refuse(args: Any, options: Any) -> None:
        try:
            signature.bind(*args, **options)
        except TypeError as misfit:
            raise TypeError(f"{named.__name__}(): {misfit}") from None

    call.__code__ = call.__code__.replace(  # as tracebacks show it
        co_name=named.__name__, co_qualname=named.__qualname__
    )
    made: Any = wraps(named)(call)
    made.__signature__ = signature
    return made
