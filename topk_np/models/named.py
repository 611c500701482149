"""Models as commands name them: packaged weights, or a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topk_np._process import UserError
from topk_np.models.bert import BertConfig
from topk_np.models.fetch import WEIGHTS, fetch
from topk_np.models.llama_blocks import LlamaConfig
from topk_np.models.load import load_model
from topk_np.models.model import Model
from topk_np.models.t5_blocks import T5Config

KINDS: dict[type, tuple[str, str]] = {
    LlamaConfig: ("smollm2, the path of a GGUF file or of a folder", "a Llama model, which writes"),
    BertConfig: ("minilm, or the path of a folder", "a BERT model"),
    T5Config: ("the path of a folder", "a T5 model"),
}


class ModelError(UserError, ValueError):
    """There is no such model, or it is of another family; the message is one line."""


def load_named(model: str, config: type, /, **options: Any) -> Model[Any]:
    """
    Load a model that is asked for with ``--model``.

    Parameters
    ----------
    model : str
        A key of `WEIGHTS`, which are downloaded once, or the path of a model.
    config : type
        The configuration that models of the wanted family have.
    **options
        Those of `load_model`.

    Raises
    ------
    ModelError, FetchError
        With a message of one line.
    """
    allowed, family = KINDS[config]
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
    if not isinstance(loaded.config, config):
        raise ModelError(f"--model {model} must be {family}")
    return loaded
