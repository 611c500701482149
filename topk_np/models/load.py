"""`load_model`, the one function that reads all checkpoints, and the families that it knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from topk_np._namespace import FLOATS, Array, check_choice
from topk_np._process import UserError
from topk_np.fetch import WEIGHTS, fetch
from topk_np.models import bert, llama, t5
from topk_np.models.family import Family, Fields, check, gather
from topk_np.models.gguf import read_gguf
from topk_np.models.model import LayerK, Model, Params
from topk_np.models.tensors import read_checkpoint
from topk_np.models.tokenizers import FileTokenizer, NoTokenizer, PieceTokenizer, Tokenizer
from topk_np.options.check import SELECTS

FAMILIES: dict[str, Family] = {
    kind: module.FAMILY for module in (bert, llama, t5) for kind in module.FAMILY.types
}
"""Families by ``model_type``."""

ALLOWED: dict[type, tuple[str, str]] = {
    llama.LlamaConfig: (
        "smollm2, the path of a GGUF file or of a folder",
        "a Llama model, which writes",
    ),
    bert.BertConfig: ("minilm, or the path of a folder", "a BERT model"),
    t5.T5Config: ("the path of a folder", "a T5 model"),
}
"""For each kind of config the values of ``--model`` that are allowed, and the name of its models"""


class ModelError(UserError, ValueError):
    """The error of a ``--model`` that does not exist or is of another family, in one line."""


def family_of(model: Model[Any], /) -> Family:
    """Return the family of a model."""
    return next(family for family in FAMILIES.values() if type(model.config) is family.kind)


def loss_fwd(model: Model[Any], /, *data: Array, **options: Any) -> tuple[Array, Any]:
    """Compute the loss of a model of any family, and the residuals for `loss_bwd`."""
    return family_of(model).loss_fwd(model, *data, **options)


def loss_bwd(model: Model[Any], residuals: Any, /, **options: Any) -> Params:
    """Compute the gradients of `loss_fwd` in the structure of the model's parameters."""
    return family_of(model).loss_bwd(residuals, **options)


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
        safetensors file next to its ``config.json``; or a GGUF file. Models of the families Llama
        (GGUF files too), BERT and T5. The tokenizer is that of ``tokenizer.json`` or, if there is
        none, of T5's ``spiece.model``.
    attention_k, ffn_k : int, None, sequence or mapping
        Keys kept for each query, and feed-forward units for each position, for all layers or layer
        by layer: see `Model`. Dense by default.
    ffn_select : {"activation", "score"}
        The rule by which units are ranked: see `topk_np.topk_ffn`.
    dtype : {"float16", "bfloat16", "float32", "float64"}, optional
        The dtype of the weights, in which results are stored. None keeps the weights as they are in
        the file; half precision is computed in float32 by each layer. Weights of GGUF files are
        dequantised to float32 in any case, and then cast.

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
    path.stat()  # so that the error names a missing path as it was given
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
    fields = _config(folder)
    check("model_type", fields.get("model_type"), *FAMILIES)
    tensors, family = read_checkpoint(path), FAMILIES[fields["model_type"]]
    layout = family.layout(fields, tensors)
    fields.refuse_unread(family.harmless)
    return Model(
        layout.config,
        gather(tensors, layout, convert=convert),
        tokenizer=_tokenizer(folder),
        stop=_stops(folder, fields),
        chat_template=_chat_template(folder),
    )


def _config(folder: Path) -> Fields:
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(fields).__name__}")
    return Fields(fields)


def _tokenizer(folder: Path) -> Tokenizer:
    path, pieces = folder / "tokenizer.json", folder / "spiece.model"
    if path.is_file():
        return FileTokenizer(path)
    return PieceTokenizer(pieces) if pieces.is_file() else NoTokenizer()


def _stops(folder: Path, fields: Fields) -> tuple[int, ...]:
    """The tokens that end a text: those of the generation config, or else of the config."""
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


def load_named(model: str, config: type | None = None, /, **options: Any) -> Model[Any]:
    """
    Load a model that is asked for with ``--model``.

    Parameters
    ----------
    model : str
        A key of `WEIGHTS`, which are downloaded once, or the path of a model.
    config : type, optional
        The kind of config that models of the wanted family have; by default any family will do.
    **options
        Those of `load_model`.

    Raises
    ------
    ModelError, FetchError
        With a message of one line.
    """
    allowed, wanted = ALLOWED[config or llama.LlamaConfig]
    path = fetch(model) if model in WEIGHTS else Path(model)
    if not path.exists():
        raise ModelError(f"--model must be {allowed}, got {model!r}")
    try:
        loaded = load_model(path, **options)
    except OSError as error:
        missing = f": {error.filename}" if error.filename else ""
        raise ModelError(f"--model {model}: {error.strerror}{missing}") from error
    except (TypeError, ValueError) as error:
        raise ModelError(str(error)) from error
    if config is not None and not isinstance(loaded.config, config):
        raise ModelError(f"--model {model} must be {wanted}")
    return loaded
