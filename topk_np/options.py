"""The options that all attention functions share, and their place in the signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
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


def spell_out(function: Function) -> Function:
    """Show each of the `AttentionOptions` in the signature of a function that takes them all."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    kind = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(
            name,
            kind,
            default=False if name == "is_causal" else None,
            annotation=annotation.__forward_arg__,
        )
        for name, annotation in AttentionOptions.__annotations__.items()
    ]
    last = next(i for i, p in enumerate(own) if p.name == "chunk_size")
    parameters = [*own[:last], *shared, *own[last:]]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
