"""One face for all checkpoints: `load_model`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from topk_np._namespace import FLOATS, Array, check_choice
from topk_np.inputs import SELECTS
from topk_np.models.checkpoint import read_gguf
from topk_np.models.configs import check, read_config
from topk_np.models.families import FAMILIES, family_of
from topk_np.models.model import Model
from topk_np.models.names import gather
from topk_np.models.per_layer import LayerK
from topk_np.models.pieces import PieceTokenizer
from topk_np.models.tensors import read_checkpoint
from topk_np.models.tokenizer import FileTokenizer, NoTokenizer, Tokenizer


def load_model(
    path: str | PathLike[str],
    /,
    *,
    attention_k: LayerK = None,
    ffn_k: LayerK = None,
    ffn_select: str = "activation",
    dtype: str | None = "float32",
) -> Model[Any]:
    """
    Load a published model, to be run dense or with top-k.

    Parameters
    ----------
    path : path
        A folder with ``config.json`` and safetensors, in one file or several with an index; or one
        safetensors file beside its ``config.json``; or a GGUF file. Models of the families Llama
        (GGUF files too), BERT and T5. A ``tokenizer.json`` is read where there is one, or
        else T5's ``spiece.model``.
    attention_k, ffn_k : int, None, sequence or mapping
        Keys kept for each query, and feed-forward units for each position, for all layers or layer
        by layer: see `Model`. Dense by default.
    ffn_select : {"activation", "score"}
        How units are ranked: see `topk_np.topk_ffn`.
    dtype : {"float16", "bfloat16", "float32", "float64"}, optional
        Of the weights, and so of what is computed with them. None keeps them as they are stored;
        half precision is then stored, and computed in float32, by each layer. Those of GGUF files
        are dequantised to float32 in any case, and then cast.

    Returns
    -------
    Model
        The weights are NumPy arrays, those of safetensors files memory-mapped where neither dtype
        nor layout has to change.

    Raises
    ------
    OSError
        If a file is missing or cannot be opened.
    TypeError, ValueError
        If a file is damaged; if a tensor is missing, has another shape, or is not known; if the
        model has a part that is not computed here; or if an option is not allowed. The message
        names the tensor, field or option.

    Notes
    -----
    Nothing in a checkpoint is ever executed.

    Examples
    --------
    The second layer keeps 64 keys for each query, the first is dense:

    >>> from topk_np.models import load_model
    >>> model = load_model("my-llama", attention_k={0: None, "rest": 64})  # doctest: +SKIP
    """
    path = Path(fspath(path))
    path.stat()  # so that what is missing is named as it was given
    check_choice("ffn_select", ffn_select, SELECTS)
    convert = _converter(dtype)
    if path.suffix == ".gguf":
        model: Model[Any] = read_gguf(path, convert=convert)
    else:
        model = _read_folder(path, convert)
    model = replace(model, attention_k=attention_k, ffn_k=ffn_k, ffn_select=ffn_select)
    family_of(model).check_ks(model)
    return model


def _converter(dtype: str | None) -> Callable[[Array], Array]:
    if dtype is None:
        return lambda tensor: tensor
    check_choice("dtype", dtype, FLOATS)
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401  makes the name known to NumPy
    return lambda tensor: np.asarray(tensor, dtype)


def _read_folder(path: Path, convert: Callable[[Array], Array]) -> Model[Any]:
    folder = path if path.is_dir() else path.parent
    fields = read_config(folder)
    check("model_type", fields.get("model_type"), *FAMILIES)
    family = FAMILIES[fields["model_type"]]
    config = family.config(fields)
    tensors = read_checkpoint(path)
    params = gather(
        tensors,
        family.names(tensors, fields),
        sizes=family.sizes(fields),
        ignored=family.ignored(fields),
        convert=convert,
    )
    return Model(
        config,
        params,
        tokenizer=_tokenizer(folder),
        stop=_stops(folder, fields),
        chat_template=_chat_template(folder),
    )


def _tokenizer(folder: Path) -> Tokenizer:
    path, pieces = folder / "tokenizer.json", folder / "spiece.model"
    if path.is_file():
        return FileTokenizer(path)
    return PieceTokenizer(pieces) if pieces.is_file() else NoTokenizer()


def _stops(folder: Path, fields: dict[str, Any]) -> tuple[int, ...]:
    """The tokens that end a text: those of the generation's config, or else of the model's."""
    more = _json(folder / "generation_config.json")
    ends = more.get("eos_token_id", fields.get("eos_token_id"))
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def _chat_template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = _json(folder / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else ""


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    return found if isinstance(found, dict) else {}
