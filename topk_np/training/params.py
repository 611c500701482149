"""Parameters in safetensors files, written whole or not at all, and checked when read."""

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
UNKNOWN = "0" * 64  # stands for the hash while it is computed


class ParamsError(UserError, ValueError):
    """The error of a file of parameters that is damaged or unexpected, in one line."""


def save_params(
    path: str | os.PathLike[str], params: Tree, /, *, metadata: Mapping[str, str] | None = None
) -> None:
    """
    Save a nested dict of arrays as a safetensors file.

    The file is written next to its place and then moved there, so that a reader finds the old file
    or the new one, whole, even after a crash or on a full disk.

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
        The expected names, shapes and dtypes, and the library and device for the arrays. By default
        any file is taken, as NumPy arrays.

    Returns
    -------
    params : nested dict of arrays
        In the order of `like`, or by name.
    metadata : dict of str to str
        The metadata that `save_params` was given.

    Raises
    ------
    ParamsError
        If the file is cut off or damaged, was changed since `save_params` wrote it, or does not
        agree with `like`.
    OSError
        If it cannot be read.

    Notes
    -----
    Holds the file and its arrays at once. The hash finds damage, not forgery, since it can be
    changed together with the file.

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
    try:
        tensors, metadata = read_tensors(Path(path))
        _check_hash(Path(path), metadata)
        arrays: dict[str, Array] = {name: tensor.copy() for name, tensor in tensors.items()}
        if like is not None:
            arrays = _fit(arrays, flatten(like))
        tree = unflatten(arrays)
    except ValueError as error:
        raise ParamsError(f"{os.fspath(path)}: {error}") from error
    return tree, {name: text for name, text in metadata.items() if name not in (HASH, *WRITER)}


def read_metadata(path: Path, /) -> dict[str, str]:
    """The metadata of a safetensors file, whose hash is not checked."""
    try:
        return read_tensors(path)[1]
    except ValueError as error:
        raise ParamsError(f"{path}: {error}") from error


def read_tensors(path: Path, /) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """
    Map the tensors of a safetensors file into memory.

    Returns
    -------
    tensors : dict of str to array
        Read-only views of the file, ordered by name; copies where the layout is not aligned.
    metadata : dict of str to str
        The metadata of the file.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is cut off or damaged, or holds a dtype other than those of `DTYPES`.

    Notes
    -----
    The package ``safetensors`` parses the header and checks that the tensors fill the file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.stat().st_size:  # a length that nothing can map
        raise ValueError("cut off, damaged or not a safetensors file (it is empty)")
    whole = np.asarray(np.memmap(path, np.uint8, mode="r"))
    try:
        with safe_open(path, "np") as checked:
            metadata: dict[str, str] = checked.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"cut off, damaged or not a safetensors file ({error})") from error
    # The package copies what it reads; where the tensors lie, the header says.
    length = int.from_bytes(whole[:8].tobytes(), "little")
    header, data = json.loads(whole[8 : 8 + length].tobytes()), whole[8 + length :]
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items()):
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} has dtype {entry['dtype']}, allowed are {', '.join(DTYPES)}")
        if entry["dtype"] == "BF16":
            import ml_dtypes  # noqa: F401  makes the name known to NumPy
        flat = data[slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]])
        tensors[name] = np.require(flat.reshape(entry["shape"]), requirements=["A"])
    return tensors, metadata


def _plain(name: str, array: Array) -> np.ndarray:
    """An array as safetensors takes it: NumPy's, contiguous, and of a dtype that it knows."""
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


def _check_hash(path: Path, metadata: dict[str, str]) -> None:
    """Check the hash of a file that `save_params` wrote."""
    digest = metadata.get(HASH)
    if digest is None and not WRITER.items() <= metadata.items():
        return  # another program's
    data = path.read_bytes()
    start = -1 if digest is None else _hash_place(data, digest)
    zeroed = data[:start] + UNKNOWN.encode() + data[start + len(UNKNOWN) :]
    if start < 0 or hashlib.sha256(zeroed).hexdigest() != digest:
        raise ValueError("damaged: its content is not that of the hash it was saved with")


def _hash_place(data: bytes, digest: str) -> int:
    """The place of the hash in a file, -1 if it is not there."""
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
