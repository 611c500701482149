"""A model as a value: what it is made of, its weights, and how many keys and units it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from topk_np.models.per_layer import LayerK
from topk_np.models.tokenizer import NoTokenizer, Tokenizer

Config = TypeVar("Config")
Params = dict[str, Any]
"""Weights: nested dicts of arrays, as `topk_np.training` takes them."""


@dataclass(frozen=True, eq=False)
class Model(Generic[Config]):
    """
    A model of the family Llama, BERT or T5.

    Nothing in it changes: ``dataclasses.replace`` makes another one, with another k for instance.

    Attributes
    ----------
    config : LlamaConfig, BertConfig or T5Config
        What the weights do not say themselves.
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
        Text to token ids and back. If the checkpoint has none, using it is a `ValueError`.
    stop : tuple of int
        Tokens after which there is nothing to be generated.
    chat_template : str
        How a conversation is written down, in the language of Jinja.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from topk_np.models import Model
    >>> model = Model(config=None, params={})  # from `load_model`, rather
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
