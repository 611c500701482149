"""
A call whose arrays can be taken out and put back in another library.

Frameworks differentiate with respect to a flat list of arrays. A call has them as arguments and as
options, by themselves or as fields of a tuple or dataclass, such as `MultiheadWeights`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import Array

Kinds = type | tuple[type, ...]  # what isinstance takes


class Call(NamedTuple):
    """The arguments and options of a call."""

    args: tuple[Any, ...]
    options: dict[str, Any]

    def arrays(self, kind: Kinds) -> list[Array]:
        """Everything of this type that the call holds, in a fixed order."""
        return _arrays_in((self.args, self.options), kind)

    def with_arrays(self, kind: Kinds, arrays: list[np.ndarray]) -> Call:
        """The call with `arrays` in the place of those that `arrays(kind)` gives."""
        left = iter(arrays)
        args, options = _map_arrays(lambda _: next(left), (self.args, self.options), kind)
        return Call(args, options)

    def gradients(self, grads: tuple[Any, ...]) -> list[np.ndarray | None]:
        """
        The gradient of each NumPy array of the call, in order; None where there is none.

        Arguments have theirs in `grads` in order, options by name. An argument that holds several
        arrays has a gradient that holds as many.
        """
        pairs = [(value, grads[i] if i < len(grads) else None) for i, value in enumerate(self.args)]
        pairs += [(value, getattr(grads, name, None)) for name, value in self.options.items()]
        found: list[np.ndarray | None] = []
        for value, grad in pairs:
            own, theirs = _arrays_in(value, np.ndarray), _arrays_in(grad, np.ndarray)
            found += theirs if len(theirs) == len(own) else [None] * len(own)
        return found


def check_output(out: Any) -> None:
    """Check that what a function gives is an array, or some in a tuple."""
    for one in out if isinstance(out, tuple) else (out,):
        if not isinstance(one, np.ndarray):
            raise TypeError(f"the output must be an array or a tuple of them, got {type(one)}")


def _arrays_in(value: Any, kind: Kinds) -> list[Array]:
    found: list[Array] = []

    def see(array: Array) -> Array:
        found.append(array)
        return array

    _map_arrays(see, value, kind)
    return found


def _map_arrays(function: Callable[[Array], Array], value: Any, kind: Kinds) -> Any:
    """`value` with every array of this type that it holds, or is, replaced by `function`."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, tuple):
        parts = [_map_arrays(function, part, kind) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, dict):
        return {name: _map_arrays(function, part, kind) for name, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        before = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        after = _map_arrays(function, before, kind)
        changed = {name: part for name, part in after.items() if part is not before[name]}
        return dataclasses.replace(value, **changed) if changed else value
    return value
