"""The part of a model that fine-tuning changes: chosen weights, or low-rank updates of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

import numpy as np
from array_api_compat import device

from topk_np._namespace import Array, array_namespace, dtype_name
from topk_np._process import UserError
from topk_np.models.model import Keep, Model, Params
from topk_np.training.lora import LoRAResiduals, lora, lora_bwd, lora_init
from topk_np.training.params import ParamsError, load_params, save_params
from topk_np.training.trees import flatten, unflatten

Config = TypeVar("Config")
KIND = "adapter"  # in the metadata of a file
MATRICES = ("*layers.*",)  # the default patterns of matrices that get updates


class AdapterError(UserError, ValueError):
    """The error of an adapter that does not fit a model, or of a file that is none, in one line."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """
    The trained part of a model: weights that replace some of its own, or low-rank updates of them.

    Attributes
    ----------
    params : nested dict of arrays
        The weights at their places in the model's, or in place of each weight the factors ``a``
        and ``b`` of its update.
    scale : float, optional
        Of the updates, as in `topk_np.training.lora`; None if `params` are the weights themselves.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.models import Adapter, Model
    >>> model = Model(None, {"norm": np.ones(4), "head": np.eye(4)})  # usually from `load_model`
    >>> rng = np.random.default_rng(0)
    >>> adapter = Adapter.low_rank(model.params, rng, rank=1, only=["head"])
    >>> {name: factor.shape for name, factor in adapter.params["head"].items()}
    {'a': (1, 4), 'b': (4, 1)}
    >>> bool((adapter.apply(model).params["head"] == np.eye(4)).all())
    True
    """

    params: Params = field(repr=False)
    scale: float | None = None

    @classmethod
    def of_weights(cls, params: Params, /, *, only: Sequence[str] = ("*",)) -> Adapter:
        """
        Make an adapter of the weights themselves.

        Parameters
        ----------
        params : nested dict of arrays
            Those of a model.
        only : sequence of str
            Patterns of the paths of the weights to train, such as "layers.*.ffn.*".

        Raises
        ------
        AdapterError
            If a pattern matches no path.
        """
        flat = flatten(params)
        return cls(unflatten({path: flat[path] for path in _chosen(flat, only)}))

    @classmethod
    def low_rank(
        cls,
        params: Params,
        rng: np.random.Generator,
        /,
        *,
        rank: int,
        alpha: float | None = None,
        only: Sequence[str] = MATRICES,
    ) -> Adapter:
        """
        Make an adapter of low-rank updates of matrices, which are zero at first: LoRA.

        Parameters
        ----------
        params : nested dict of arrays
            Those of a model.
        rng : numpy.random.Generator
            Source of the factors ``a``.
        rank : int
            Of the updates.
        alpha : float, optional
            The updates are multiplied by ``alpha / rank``: by 1 by default.
        only : sequence of str
            Patterns of the paths of the matrices; by default those of all blocks.

        Raises
        ------
        AdapterError
            If a pattern matches the path of no matrix.

        Notes
        -----
        Hu et al. 2021, arXiv:2106.09685.
        """
        matrices = {path: array for path, array in flatten(params).items() if array.ndim == 2}
        factors: dict[str, Array] = {}
        for path in _chosen(matrices, only):
            a, b = lora_init(matrices[path], rng, rank=rank)
            factors |= {f"{path}.a": a, f"{path}.b": b}
        return cls(unflatten(factors), 1.0 if alpha is None else alpha / rank)

    def apply(self, model: Model[Config], /) -> Model[Config]:
        """
        Return the model with the weights in place, or with the updates merged in.

        Raises
        ------
        AdapterError
            If the model has no such weight, or one of another shape.
        """
        flat = flatten(model.params)
        for path, part in self._parts().items():
            if path not in flat:
                raise AdapterError(f"the adapter has {path}, which the model has not")
            flat[path] = self._merged(path, flat[path], part)
        return replace(model, params=unflatten(flat))

    def keep(self) -> Keep:
        """Return the option `keep` of `loss_bwd` for gradients in the structure of `params`."""
        return {path: self._reduce(part) for path, part in self._parts().items()}

    def save(self, path: str | os.PathLike[str], /, **about: str) -> None:
        """Save as a safetensors file, whole or not at all, with further metadata."""
        metadata = {"kind": KIND, "scale": json.dumps(self.scale), **about}
        save_params(path, self.params, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], /) -> Adapter:
        """
        Load an adapter from a file that `save` wrote.

        Raises
        ------
        AdapterError
            If the file is damaged, or holds no adapter.
        OSError
            If it cannot be read.
        """
        try:
            params, about = load_params(path)
        except ParamsError as error:
            raise AdapterError(str(error)) from error
        try:
            scale = json.loads(about["scale"])
        except (KeyError, ValueError):
            scale = ""
        low_rank = isinstance(scale, float)
        known = low_rank or scale is None
        if about.get("kind") != KIND or not known or (low_rank and not _in_pairs(params)):
            raise AdapterError(f"{os.fspath(path)} holds no adapter")
        return cls(params, scale)

    def _parts(self) -> dict[str, Any]:
        """The weights, or the factors ``a`` and ``b`` of the updates, by the paths of weights."""
        flat = flatten(self.params)
        if self.scale is None:
            return flat
        paths = dict.fromkeys(path.rpartition(".")[0] for path in flat)
        return {path: (flat[f"{path}.a"], flat[f"{path}.b"]) for path in paths}

    def _merged(self, path: str, weight: Array, part: Any) -> Array:
        if self.scale is None:
            fits = tuple(part.shape) == tuple(weight.shape)
            if not fits or dtype_name(part) != dtype_name(weight):
                raise AdapterError(
                    f"the adapter's {path} must have shape {tuple(weight.shape)} and dtype "
                    f"{dtype_name(weight)}, got {tuple(part.shape)} and {dtype_name(part)}"
                )
            return _beside(weight, part)
        a, b = (_beside(weight, factor) for factor in part)
        try:
            return lora(weight, a, b, scale=self.scale)
        except ValueError as error:
            raise AdapterError(f"the adapter's {path}: {error}") from error

    def _reduce(self, part: Any) -> Callable[[Array], Any]:
        if self.scale is None:
            return lambda grad: grad
        a, b = part
        return partial(_factor_grads, LoRAResiduals(a, b, self.scale))


def _in_pairs(params: Params) -> bool:
    """Tell if parameters are the factors ``a`` and ``b`` of updates."""
    flat = flatten(params)
    paths = {path.rpartition(".")[0] for path in flat}
    return set(flat) == {f"{path}.{factor}" for path in paths for factor in "ab"}


def _factor_grads(residuals: LoRAResiduals, dweight: Array) -> Params:
    grads = lora_bwd(residuals, dweight)
    return {"a": grads.a, "b": grads.b}


def _beside(weight: Array, array: Array) -> Array:
    """An array, NumPy's if it is from a file, in the library and on the device of a weight."""
    if not isinstance(array, np.ndarray) or isinstance(weight, np.ndarray):
        return array
    return array_namespace(weight).asarray(array, device=device(weight))


def _chosen(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The paths that match one of the patterns."""
    paths = list(paths)
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise AdapterError(f"only must fit what can be trained, got {pattern!r}")
    return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]
