"""What fine-tuning changes of a model's weights: chosen ones, or low-rank updates of them."""

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
from topk_np.models.keep import Keep
from topk_np.models.model import Model, Params
from topk_np.training.lora import LoRAResiduals, lora, lora_bwd, lora_init
from topk_np.training.params import ParamsError, load_params, save_params
from topk_np.training.trees import flatten, unflatten

Config = TypeVar("Config")
KIND = "adapter"  # in the metadata of a file
MATRICES = ("*layers.*",)  # of which updates are learned unless others are chosen


class AdapterError(UserError, ValueError):
    """An adapter that does not fit the model or is none; the message is one line."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """
    Weights that stand in for some of a model's, or low-rank updates of these: what is trained.

    Attributes
    ----------
    params : nested dict of arrays
        The weights at their places in the model's, or in the place of each its factors ``a`` and
        ``b``.
    scale : float, optional
        Of the updates, as in `topk_np.training.lora`; None: `params` are the weights themselves.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.models import Adapter, Model
    >>> model = Model(None, {"norm": np.ones(4), "head": np.eye(4)})  # from `load_model`, rather
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
        The weights themselves, to be trained as they are.

        Parameters
        ----------
        params : nested dict of arrays
            Those of a model.
        only : sequence of str
            Patterns of the paths of those that are trained, such as "layers.*.ffn.*".

        Raises
        ------
        AdapterError
            If a pattern fits no path.
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
        Updates of matrices that are zero at first: LoRA.

        Parameters
        ----------
        params : nested dict of arrays
            Those of a model.
        rng : numpy.random.Generator
            What the factors ``a`` are drawn from.
        rank : int
            Of the updates.
        alpha : float, optional
            The updates are multiplied by ``alpha / rank``; by default `rank`, so that they are not.
        only : sequence of str
            Patterns of the paths of the matrices: by default all of the blocks.

        Raises
        ------
        AdapterError
            If a pattern fits the path of no matrix.

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
        The model with the weights in their places, or with the updates merged in.

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
        """What a model's `loss_bwd` is to keep: gradients in the structure of `params`."""
        return {path: self._reduce(part) for path, part in self._parts().items()}

    def save(self, path: str | os.PathLike[str], /, **about: str) -> None:
        """Save as a safetensors file, at once or not at all, with more to say about it."""
        metadata = {"kind": KIND, "scale": json.dumps(self.scale), **about}
        save_params(path, self.params, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], /) -> Adapter:
        """
        Load what `save` saved.

        Raises
        ------
        AdapterError
            If the file is damaged, or not an adapter.
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
        """By path a weight, or the factors ``a`` and ``b`` of an update."""
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
    """Whether parameters are the factors ``a`` and ``b`` of updates."""
    flat = flatten(params)
    paths = {path.rpartition(".")[0] for path in flat}
    return set(flat) == {f"{path}.{factor}" for path in paths for factor in "ab"}


def _factor_grads(residuals: LoRAResiduals, dweight: Array) -> Params:
    grads = lora_bwd(residuals, dweight)
    return {"a": grads.a, "b": grads.b}


def _beside(weight: Array, array: Array) -> Array:
    """An array in the library and on the device of the weight: from a file it is NumPy's."""
    if not isinstance(array, np.ndarray) or isinstance(weight, np.ndarray):
        return array
    return array_namespace(weight).asarray(array, device=device(weight))


def _chosen(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The paths that fit a pattern."""
    paths = list(paths)
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise AdapterError(f"only must fit what can be trained, got {pattern!r}")
    return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]
