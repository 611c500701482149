"""How many keys or units each layer keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from topk_np._namespace import check_integer

LayerK = int | None | Sequence[int | None] | Mapping[int | str, int | None]
"""
One k for all layers, a sequence with one for each, or a mapping from layers, counted from 0, to
theirs, in which "rest" stands for all that it does not name. None is a dense layer.
"""

REST = "rest"


def per_layer(name: str, k: LayerK, layers: int, /) -> list[int | None]:
    """
    The k of each layer.

    Parameters
    ----------
    name : str
        What errors call `k`.
    k : int, None, sequence or mapping
        As `LayerK` says.
    layers : int
        How many layers there are.

    Returns
    -------
    list of int or None
        One for each layer; None where it is dense.

    Raises
    ------
    TypeError
        If `k`, or one of its entries, is neither None nor an integer.
    ValueError
        If an integer is below 1, a sequence has another length than there are layers, or a mapping
        names a layer that does not exist or leaves one out without "rest".

    Examples
    --------
    The first layer dense, the others with 64 keys:

    >>> from topk_np.models.per_layer import per_layer
    >>> per_layer("attention_k", {0: None, "rest": 64}, 4)
    [None, 64, 64, 64]
    """
    if isinstance(k, Mapping):
        return _from_mapping(name, k, layers)
    if isinstance(k, (list, tuple)):
        if len(k) != layers:
            raise ValueError(f"{name} must have an entry for each of {layers} layers, got {len(k)}")
        return [_check(f"{name}[{i}]", own) for i, own in enumerate(k)]
    return [_check(name, k)] * layers


def _from_mapping(name: str, ks: Mapping[int | str, int | None], layers: int) -> list[int | None]:
    checked: dict[int | str, int | None] = {}
    for layer, k in ks.items():
        if layer != REST and check_integer(f"a layer of {name}", layer) not in range(layers):
            raise ValueError(f'{name} must name layers 0 .. {layers - 1}, or "{REST}", got {layer}')
        checked[layer] = _check(f"{name}[{layer!r}]", k)
    missing = [layer for layer in range(layers) if layer not in checked]
    if missing and REST not in checked:
        raise ValueError(
            f'{name} must name all of {layers} layers or have an entry "{REST}"; '
            f"layer {missing[0]} has none"
        )
    return [checked[layer if layer in checked else REST] for layer in range(layers)]


def _check(name: str, k: object) -> int | None:
    return None if k is None else check_integer(name, k, least=1)
