"""A model as a value, the keys and units that its layers keep, and the checks on its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from topk_np._namespace import Array, array_namespace, check_integer
from topk_np.models.tokenizers import NoTokenizer, Tokenizer
from topk_np.training.trees import flatten, unflatten

Config = TypeVar("Config")
Params = dict[str, Any]
"""Weights: nested dicts of arrays, as `topk_np.training` takes them."""

LayerK = int | None | Sequence[int | None] | Mapping[int | str, int | None]
"""
One k for all layers, a sequence with one for each, or a mapping from layer numbers, counted from 0,
to theirs, in which "rest" stands for all layers that it does not name. None is a dense layer.
"""

REST = "rest"

Keep: TypeAlias = Mapping[str, Callable[[Array], Any]]
"""
Functions by the paths of weights, names joined by dots. Only these weights have gradients, and each
gradient is replaced by what its function returns.
"""


@dataclass(frozen=True, eq=False)
class Model(Generic[Config]):
    """
    A model of one of the families Llama, BERT and T5.

    A model never changes: ``dataclasses.replace`` makes another one, with another k for instance.

    Attributes
    ----------
    config : LlamaConfig, BertConfig or T5Config
        Numbers and rules that cannot be read off the weights.
    params : nested dict of arrays
        The weights. Layers are a dict from "0", "1", ...; an output layer tied to the embedding is
        not among them.
    attention_k, ffn_k : int, None, sequence or mapping
        Keys kept per query, and feed-forward units kept per position, as `LayerK` says: one number
        for all layers, or one for each; None is dense. T5 also takes a mapping from "encoder",
        "decoder" and (attention only) "cross" to such.
    ffn_select : {"activation", "score"}
        Units are ranked by the size of what they contribute, or by what goes into the activation:
        see `topk_np.topk_ffn`.
    tokenizer : Tokenizer
        Text to token ids and back. Using it is a `ValueError` if the checkpoint has none.
    stop : tuple of int
        Tokens after which generation ends.
    chat_template : str
        The Jinja template by which a conversation is written down.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from topk_np.models import Model
    >>> model = Model(config=None, params={})  # usually from `load_model`
    >>> replace(model, attention_k={0: None, "rest": 64}).attention_k
    {0: None, 'rest': 64}
    """

    config: Config
    params: Params = field(repr=False)
    attention_k: LayerK = None
    ffn_k: LayerK = None
    ffn_select: str = "activation"
    tokenizer: Tokenizer = field(default=NoTokenizer(), repr=False)
    stop: tuple[int, ...] = ()
    chat_template: str = field(default="", repr=False)


def per_layer(name: str, k: LayerK, layers: int, /) -> list[int | None]:
    """
    Return the k of each layer.

    Parameters
    ----------
    name : str
        The name of `k` in error messages.
    k : int, None, sequence or mapping
        As `LayerK` says.
    layers : int
        Number of layers.

    Returns
    -------
    list of int or None
        One for each layer; None where it is dense.

    Raises
    ------
    TypeError
        If `k`, or one of its entries, is neither None nor an integer.
    ValueError
        If an integer is below 1, the length of a sequence is not the number of layers, or a mapping
        names a layer that does not exist or omits one without having "rest".

    Examples
    --------
    The first layer dense, the others with 64 keys:

    >>> from topk_np.models.model import per_layer
    >>> per_layer("attention_k", {0: None, "rest": 64}, 4)
    [None, 64, 64, 64]
    """
    if isinstance(k, Mapping):
        return _from_mapping(name, k, layers)
    if isinstance(k, (list, tuple)):
        if len(k) != layers:
            raise ValueError(f"{name} must have an entry for each of {layers} layers, got {len(k)}")
        return [_check_k(f"{name}[{i}]", own) for i, own in enumerate(k)]
    return [_check_k(name, k)] * layers


def _from_mapping(name: str, ks: Mapping[int | str, int | None], layers: int) -> list[int | None]:
    checked: dict[int | str, int | None] = {}
    for layer, k in ks.items():
        if layer != REST and check_integer(f"a layer of {name}", layer) not in range(layers):
            raise ValueError(f'{name} must name layers 0 .. {layers - 1}, or "{REST}", got {layer}')
        checked[layer] = _check_k(f"{name}[{layer!r}]", k)
    missing = [layer for layer in range(layers) if layer not in checked]
    if missing and REST not in checked:
        raise ValueError(
            f'{name} must name all of {layers} layers or have an entry "{REST}"; '
            f"layer {missing[0]} has none"
        )
    return [checked[layer if layer in checked else REST] for layer in range(layers)]


def _check_k(name: str, k: object) -> int | None:
    return None if k is None else check_integer(name, k, least=1)


def check_ks(model: Model[Any], /) -> list[tuple[int | None, int | None]]:
    """The checked number of keys and of units that each layer of a single stack keeps."""
    depth = len(model.params["layers"])
    ks = per_layer("attention_k", model.attention_k, depth)
    return list(zip(ks, per_layer("ffn_k", model.ffn_k, depth), strict=True))


def output_layer(model: Model[Any], /) -> Array:
    """The output layer (T, D) of a language model: the embedding where it is tied to that."""
    head: Array = model.params.get("head", model.params["embedding"])
    return head


def check_keep(keep: Keep | None, paths: Iterable[str], /) -> None:
    """
    Check that all gradients to be kept are those of weights.

    Raises
    ------
    ValueError
        If `keep` has a path that is not among `paths`, those of the model's weights.
    """
    unknown = sorted((keep or {}).keys() - set(paths))
    if unknown:
        raise ValueError(f"keep must name weights of the model, got {unknown[0]!r}")


def kept_of(grads: Params, keep: Keep | None, path: str = "", /) -> Params:
    """The part to be kept of gradients whose paths begin with `path`; all of them by default."""
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
    """Tell if the gradient of a weight is to be kept."""
    return keep is None or path in keep


def check_tokens(table: Array, tokens: Array, /, *, name: str = "tokens", least: int = 1) -> None:
    """Check that `tokens` (..., Q) are ids of rows of `table`, and Q is at least `least`."""
    xp = array_namespace(table, tokens)
    if not xp.isdtype(tokens.dtype, "integral"):
        raise TypeError(f"{name} must be integers, got dtype {tokens.dtype}")
    if tokens.ndim < 1 or 0 in tokens.shape:
        raise ValueError(f"{name} must have shape (..., Q) and no empty axis, got {tokens.shape}")
    if tokens.shape[-1] < least:
        raise ValueError(f"{name} must have at least {least} positions, got shape {tokens.shape}")
    size = table.shape[0]
    low, high = int(xp.min(tokens)), int(xp.max(tokens))
    if low < 0 or high >= size:
        raise ValueError(f"{name} must lie in 0 .. {size - 1}, got {low} .. {high}")


def check_mask(name: str, mask: Array, tokens: Array, /) -> None:
    """Check that `mask` is boolean and has an entry for each token."""
    xp = array_namespace(tokens, mask)
    if not xp.isdtype(mask.dtype, "bool"):
        raise TypeError(f"{name} must be boolean, got dtype {mask.dtype}")
    if tuple(mask.shape) != tuple(tokens.shape):
        raise ValueError(
            f"{name} must have the shape of the tokens, {tokens.shape}, got {mask.shape}"
        )
