"""Gradients of the weights that are wanted, and what is kept of each as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from topk_np._namespace import Array
from topk_np.models.model import Params
from topk_np.training.trees import flatten, unflatten

Keep: TypeAlias = Mapping[str, Callable[[Array], Any]]
"""
From the paths of weights, names joined by dots, to functions: what stands in the place of a weight
in the gradients is what its function makes of the gradient. Other weights have no place in them.
"""


def check_keep(keep: Keep | None, paths: Iterable[str], /) -> None:
    """
    Check that what is to be kept is a gradient of a weight.

    Raises
    ------
    ValueError
        If `keep` names what is not among the paths of the model's weights.
    """
    unknown = sorted((keep or {}).keys() - set(paths))
    if unknown:
        raise ValueError(f"keep must name weights of the model, got {unknown[0]!r}")


def kept_of(grads: Params, keep: Keep | None, path: str = "", /) -> Params:
    """What is kept of gradients whose paths begin with `path`; all of them by default."""
    if keep is None:
        return grads
    prefix = f"{path}." if path else ""
    return unflatten(
        {
            name: keep[prefix + name](grad)
            for name, grad in flatten(grads).items()
            if prefix + name in keep
        }
    )


def wants(keep: Keep | None, path: str, /) -> bool:
    """Whether a gradient is wanted."""
    return keep is None or path in keep
