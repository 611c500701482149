"""From the names of a checkpoint to nested parameters, each tensor checked, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import Array, array_namespace
from topk_np.models.model import Params
from topk_np.training.trees import flatten, unflatten


class Name(NamedTuple):
    """Where a parameter comes from."""

    path: str
    """In the nested parameters, names joined by dots."""
    tensor: str
    """In the checkpoint."""
    shape: str
    """Sizes by their letters, as in "F D", in the checkpoint."""
    flipped: bool = False
    """Whether the parameter is the transpose, stored anew so that its rows lie together."""


def gather(
    tensors: Mapping[str, Array],
    names: Iterable[Name],
    /,
    *,
    sizes: Mapping[str, int],
    ignored: Collection[str] = (),
    convert: Callable[[Array], Array] = lambda tensor: tensor,
) -> Params:
    """
    Nested parameters from the tensors of a checkpoint.

    Parameters
    ----------
    tensors : mapping
        Arrays by name.
    names : iterable of Name
        All that the model needs.
    sizes : mapping of str to int
        What letters of the shapes stand for; the others are what comes first.
    ignored : collection of str
        Patterns, for whole names, of tensors that are known and not needed.
    convert : callable, optional
        Called with each tensor that is taken.

    Raises
    ------
    ValueError
        If a tensor is missing, has another shape, or is neither needed nor known.
    """
    names, sizes, flat = list(names), dict(sizes), {}
    for name in names:
        if name.tensor not in tensors:
            raise ValueError(f"the checkpoint has no tensor {name.tensor}")
        tensor, letters = tensors[name.tensor], name.shape.split()
        for letter, size in zip(letters, tensor.shape, strict=False):
            sizes.setdefault(letter, size)
        wanted = tuple(sizes.get(letter) for letter in letters)
        if tuple(tensor.shape) != wanted:
            raise ValueError(
                f"the tensor {name.tensor} must have shape {wanted}, got {tuple(tensor.shape)}"
            )
        tensor = convert(tensor)
        flat[name.path] = np.ascontiguousarray(tensor.T) if name.flipped else tensor
    taken = {name.tensor for name in names}
    for tensor_name in tensors:
        if tensor_name not in taken and not any(re.fullmatch(p, tensor_name) for p in ignored):
            raise ValueError(f"the checkpoint has a tensor that is not known: {tensor_name}")
    return unflatten(flat)


def scatter(params: Params, names: Iterable[Name], /) -> dict[str, Any]:
    """The way back: tensors as a checkpoint names them, of parameters or of their gradients."""
    flat = flatten(params)
    return {
        name.tensor: array_namespace(flat[name.path]).matrix_transpose(flat[name.path])
        if name.flipped
        else flat[name.path]
        for name in names
    }


def depth_of(tensors: Collection[str], pattern: str, /) -> int:
    """How many layers there are, from the name of a tensor of layer {}."""
    depth = 0
    while pattern.format(depth) in tensors:
        depth += 1
    return depth
