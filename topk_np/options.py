"""The options that all attention functions share, and their place in the signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TypedDict, TypeVar

from topk_np._namespace import Array
from topk_np.masking import PairFunction
from topk_np.relative import ALiBi, T5Bias

Function = TypeVar("Function", bound=Callable[..., object])


class AttentionOptions(TypedDict, total=False):
    """What `topk_np.inputs.attention_problem` takes by name; described in `topk_attention`."""

    mask: Array | PairFunction | None
    is_causal: bool
    query_offset: int | Array | None
    window: tuple[int | None, int | None] | None
    query_lengths: int | Array | None
    key_lengths: int | Array | None
    bias: Array | ALiBi | T5Bias | PairFunction | None
    scale: float | None
    softcap: float | None
    dropout: tuple[float, int] | None
    always_keep: tuple[int, int] | None


def check_known(given: Mapping[str, object], options: type, whose: str) -> None:
    """Check that what was given by name is among the `options`, a TypedDict."""
    unknown = given.keys() - options.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"got an unexpected keyword argument {min(unknown)!r}; the options of {whose} are "
            + ", ".join(options.__annotations__)
        )


def spell_out(options: type) -> Callable[[Function], Function]:
    """
    Show each of the `options`, a TypedDict, in the signature of a function that takes them all.

    They come before the function's own `chunk_size`, or last.
    """
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if name == "is_causal" else None,
            annotation=annotation.__forward_arg__,
        )
        for name, annotation in options.__annotations__.items()
    ]

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        last = next((i for i, p in enumerate(own) if p.name == "chunk_size"), len(own))
        parameters = [*own[:last], *shared, *own[last:]]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return decorate
