"""Parameters in files: safetensors, written at once or not at all, and checked when read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import device

from topk_np._namespace import Array, array_namespace, dtype_name, to_numpy
from topk_np._process import UserError, write_whole
from topk_np.training.trees import Tree, flatten, unflatten

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
HASH = "topk_np.sha256"
WRITER = {"writer": "topk_np"}  # a file that says so must have a hash
UNKNOWN = "0" * 64  # what stands for the hash while it is computed


class ParamsError(UserError, ValueError):
    """A file of parameters that is damaged, or not what was asked for; one line says what."""


def save_params(
    path: str | os.PathLike[str], params: Tree, /, *, metadata: Mapping[str, str] | None = None
) -> None:
    """
    Save a nested dict of arrays as a safetensors file.

    The file is written next to its place and then moved there: a reader, also after a crash
    or a full disk, finds the old file or the new one, whole.

    Parameters
    ----------
    path : path
        The file, which is replaced where it exists; its folder must exist.
    params : nested dict of arrays
        Of any library; names become paths such as ``head.weight``.
    metadata : mapping of str to str, optional
        Kept with them; "writer" and "topk_np.sha256" are ours.

    Raises
    ------
    TypeError
        If a leaf is not an array, or `metadata` has anything but strings.
    ValueError
        If `params` has no array, or names that are empty or have dots; if a dtype is not one of
        safetensors.
    OSError
        If the file cannot be written.

    See Also
    --------
    load_params : the way back.

    Notes
    -----
    The hash in the metadata is the SHA-256 of the whole file with 64 zeros in its own place.
    The format: https://github.com/huggingface/safetensors; nothing in it is ever executed.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.training import load_params, save_params
    >>> save_params("head.safetensors", {"head": {"bias": np.zeros(2)}}, metadata={"step": "10"})
    >>> load_params("head.safetensors")
    ({'head': {'bias': array([0., 0.])}}, {'step': '10'})
    """
    from safetensors.numpy import save

    arrays = {name: _plain(name, array) for name, array in flatten(params).items()}
    if not arrays:
        raise ValueError("params must have at least one array, got none")
    metadata = dict(metadata or {})
    if not all(isinstance(text, str) for text in (*metadata, *metadata.values())):
        raise TypeError(f"metadata must be strings by strings, got {metadata!r}")
    data = save(arrays, {**metadata, **WRITER, HASH: UNKNOWN})
    start = _hash_place(data, UNKNOWN)
    digest = hashlib.sha256(data).hexdigest()
    write_whole(Path(path), data[:start] + digest.encode() + data[start + len(digest) :])


def load_params(
    path: str | os.PathLike[str], /, *, like: Tree | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Load a nested dict of arrays from a safetensors file.

    Parameters
    ----------
    path : path
        From `save_params`, or any other safetensors file.
    like : nested dict of arrays, optional
        What is expected: names, shapes and dtypes must agree, and the arrays go to the library and
        device of these. By default anything is taken, as NumPy arrays.

    Returns
    -------
    params : nested dict of arrays
        In the order of `like`, or by name.
    metadata : dict of str to str
        What `save_params` was given.

    Raises
    ------
    ParamsError
        If the file is cut off or damaged, was changed since `save_params` wrote it, or is not what
        `like` expects.
    OSError
        If it cannot be read.

    Notes
    -----
    Holds the file and its arrays at once. Someone who changes a file on purpose can change the hash
    as well: it is there to find damage.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.training import load_params, save_params
    >>> save_params("norm.safetensors", {"scale": np.ones(2)})
    >>> load_params("norm.safetensors", like={"scale": np.zeros(3)})
    Traceback (most recent call last):
    ...
    topk_np.training.params.ParamsError: norm.safetensors: scale must have shape (3,) and dtype \
float64, got (2,) and float64
    """
    data = Path(path).read_bytes()
    try:
        arrays, metadata = _parse(data)
        _check_hash(data, metadata)
        if like is not None:
            arrays = _fit(arrays, flatten(like))
        tree = unflatten(arrays)
    except ValueError as error:
        raise ParamsError(f"{os.fspath(path)}: {error}") from error
    return tree, {name: text for name, text in metadata.items() if name not in (HASH, *WRITER)}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, whose arrays are neither read nor checked."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            found: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ParamsError(f"{path}: damaged or not a safetensors file ({error})") from error
    return found


def _plain(name: str, array: Array) -> np.ndarray:
    """An array as safetensors takes it: NumPy's, of one block, and of a dtype that it knows."""
    try:
        array_namespace(array)
    except TypeError as error:
        raise TypeError(f"params[{name!r}]: {error}") from None
    if dtype_name(array) not in DTYPES.values():
        raise ValueError(
            f"params[{name!r}] must have one of the dtypes {', '.join(DTYPES.values())}, "
            f"got {array.dtype}"
        )
    plain = array if isinstance(array, np.ndarray) else to_numpy(array)
    return np.asarray(plain, dtype_name(array), order="C")


def _parse(data: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays by name, and the metadata, of the bytes of a file."""
    from safetensors import SafetensorError, deserialize

    try:
        found = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(f"cut off, damaged or not a safetensors file ({error})") from error
    arrays = {}
    for name, tensor in sorted(found):
        if tensor["dtype"] not in DTYPES:
            raise ValueError(f"{name} has the unknown dtype {tensor['dtype']}")
        dtype = DTYPES[tensor["dtype"]]
        if dtype == "bfloat16":
            import ml_dtypes  # noqa: F401  makes the name known to NumPy
        arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"]).copy()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return arrays, header.get("__metadata__", {})


def _check_hash(data: bytes, metadata: dict[str, str]) -> None:
    """Check the hash of a file of ours."""
    digest = metadata.get(HASH)
    if digest is None and not WRITER.items() <= metadata.items():
        return  # another program's
    start = -1 if digest is None else _hash_place(data, digest)
    zeroed = data[:start] + UNKNOWN.encode() + data[start + len(UNKNOWN) :]
    if start < 0 or hashlib.sha256(zeroed).hexdigest() != digest:
        raise ValueError("damaged: its content is not that of the hash it was saved with")


def _hash_place(data: bytes, digest: str) -> int:
    """The place of the hash in a file, or -1."""
    key = f'"{HASH}":"'.encode()
    start = data.find(key + digest.encode() + b'"')
    return start if start < 0 else start + len(key)


def _fit(arrays: dict[str, Array], like: dict[str, Array]) -> dict[str, Array]:
    """The arrays in the order of those expected, in their library and on their device."""
    missing, unknown = like.keys() - arrays.keys(), arrays.keys() - like.keys()
    for what, names in (("is missing", missing), ("was not expected", unknown)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{', '.join(sorted(names)[:3])}{more} {what}")
    fitted = {}
    for name, model in like.items():
        got = arrays[name]
        if got.shape != tuple(model.shape) or dtype_name(got) != dtype_name(model):
            raise ValueError(
                f"{name} must have shape {tuple(model.shape)} and dtype {dtype_name(model)}, "
                f"got {got.shape} and {dtype_name(got)}"
            )
        if not isinstance(model, np.ndarray):
            got = array_namespace(model).asarray(got, device=device(model))
        fitted[name] = got
    return fitted
