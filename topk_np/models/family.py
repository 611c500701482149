"""The description of a family of models, and the reading of its checkpoints: config and tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import Array, array_namespace, check_integer, check_number
from topk_np.models.model import Model, Params
from topk_np.models.scoring import NextTokens
from topk_np.training.trees import flatten, unflatten

ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
"""Our names of activations, by those of configs."""


_COMMON = {  # reasons, and the fields that they are those of
    "names the origin of the checkpoint": "_name_or_path name_or_path _commit_hash architectures "
    "auto_map transformers_version unsloth_version unsloth_fixed finetuning_task",
    "chooses how another library computes the same": "attn_implementation _attn_implementation "
    "_attn_implementation_autoset _attn_implementation_internal chunk_size_feed_forward "
    "experts_implementation gradient_checkpointing use_cache torchscript use_bfloat16",
    "chooses what another library returns": "output_attentions output_hidden_states output_past "
    "return_dict tie_last_hidden_states use_return_dict",
    "is the dtype of the file; `dtype` of `load_model` chooses that of the model": "dtype "
    "torch_dtype",
    "is about heads for classification, which are not read": "classifier_dropout id2label label2id "
    "num_labels problem_type",
    "draws the first weights of training": "initializer_factor initializer_range",
    "is about tokens around a text, which the tokenizer adds": "bos_token_id eos_token_id "
    "decoder_start_token_id forced_bos_token_id forced_eos_token_id prefix sep_token_id "
    "task_specific_params tokenizer_class",
    "has a row of the embedding whose gradient PyTorch drops": "pad_token_id",
    "is about generation, whose caller chooses": "begin_suppress_tokens bad_words_ids "
    "diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size "
    "encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty "
    "length_penalty max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups "
    "num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty "
    "return_dict_in_generate suppress_tokens temperature top_k top_p typical_p",
    "chooses a loss of another library": "tf_legacy_loss",
    "is what the family says": "is_encoder_decoder model_type",
}
HARMLESS = {name: reason for reason, names in _COMMON.items() for name in names.split()}
"""Fields of the configs of all families that do not change the numbers, each with the reason."""


class Fields(Mapping[str, Any]):
    """
    The fields of a config, which remember which of them were read.

    Parameters
    ----------
    values : mapping
        By name. A field that is None counts as missing.
    source : str
        The name of the config in messages.
    spelling : mapping of str to str, optional
        Other names of fields in messages.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        source: str = "the config",
        spelling: Mapping[str, str] | None = None,
    ) -> None:
        self.source = source
        self._values = values
        self._spelling = spelling or {}
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        """The field of that name."""
        self._read.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._values)

    def __len__(self) -> int:
        """The number of fields."""
        return len(self._values)

    def set_defaults(self, defaults: Mapping[str, Any], /) -> None:
        """Add fields that are not there; they need not be read."""
        self._read |= defaults.keys() - self._values.keys()
        self._values = {**defaults, **self._values}

    @property
    def raw(self) -> dict[str, Any]:
        """All fields as they are; looking at them here is not reading them."""
        return dict(self._values)

    def need(self, name: str, default: Any = None, /) -> Any:
        """A field that has to be there, unless there is a default."""
        value = default if self.get(name) is None else self[name]
        if value is None:
            raise ValueError(f"{self.source} has no {self._spelling.get(name, name)}")
        return value

    def _label(self, name: str) -> str:
        """The name of a field in messages."""
        return self._spelling.get(name) or f"{name} of {self.source}"

    def number(self, name: str, default: int | None = None, /) -> int:
        """A positive integer."""
        return check_integer(self._label(name), self.need(name, default), least=1)

    def positive(self, name: str, default: float | None = None, /) -> float:
        """A positive number."""
        value = check_number(self._label(name), self.need(name, default))
        if value <= 0:
            raise ValueError(f"{self._label(name)} must be positive, got {value}")
        return value

    def whole(self, name: str, default: int | None = None, /) -> int:
        """An integer that is not negative."""
        return check_integer(self._label(name), self.need(name, default), least=0)

    def flag(self, name: str, default: bool, /) -> bool:
        """True or False."""
        value = self.need(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self._label(name)} must be true or false, got {value!r}")
        return value

    def table(self, name: str, /) -> Fields:
        """The fields within a field, none where it is missing or empty."""
        value = self.get(name) or {}
        if not isinstance(value, dict):
            raise ValueError(f"{self._label(name)} must be a JSON object, got {value!r}")
        return Fields(value, self._label(name))

    def depth(self, name: str, tensors: Collection[str], /) -> int:
        """
        A number of layers, cut short where there cannot be that many.

        Each layer has tensors, so the first missing one is found as well with one layer more than
        there are tensors as with a billion.
        """
        return min(self.number(name), len(tensors) + 1)

    def refuse_unread(self, harmless: Mapping[str, str], /) -> None:
        """
        Check that all fields were read, except those that are harmless in this or every family.

        Raises
        ------
        ValueError
            If there is another field: it may change the numbers.
        """
        odd = [
            f"{self._spelling.get(name, name)} ({value!r:.40})"
            for name, value in self._values.items()
            if value not in (None, {}, []) and name not in {*self._read, *harmless, *HARMLESS}
        ]
        if odd:
            raise ValueError(
                f"{self.source} has fields that this reader does not know: {', '.join(odd)}; "
                "remove them if the model computes the same without them"
            )


def check(name: str, got: object, *allowed: object) -> None:
    """Check that a field has one of the values that can be computed here."""
    if got not in allowed:
        wanted = " or ".join(map(repr, allowed))
        raise ValueError(f"{name} must be {wanted} for this reader, got {got!r}")


class Name(NamedTuple):
    """The tensor that a parameter comes from."""

    path: str
    """In the nested parameters, names joined by dots."""
    tensor: str
    """In the checkpoint."""
    shape: str
    """Sizes by their letters, as in "F D", in the checkpoint."""
    flipped: bool = False
    """True for a parameter that is the transpose, stored anew so that its rows are contiguous."""


class Layout(NamedTuple):
    """The model that a config describes, and the tensors that it is made of."""

    config: Any
    names: list[Name]
    sizes: dict[str, int]
    """By the letters of the shapes."""
    ignored: tuple[str, ...] = ()
    """Patterns, for whole names, of tensors that are known and not needed."""


class Decoder(NamedTuple):
    """A model that is about to write: it reads `start`, and then each token that was chosen."""

    start: Array
    """(..., Q) token ids."""
    scores: Callable[[Array], Array]
    """From the tokens (..., n) that are next to the scores (..., 1, T) of the token after them."""
    room: int | None = None
    """The largest number of tokens that fit after `start`; None: any number does."""


class Examples(NamedTuple):
    """Data to learn from, made of plain text."""

    data: tuple[Array, ...]
    """The positional arguments of the family's `loss_fwd`, after the model."""
    labels: int
    """The number of tokens to predict."""


@dataclass(frozen=True)
class Family:
    """
    A family of models, as loading, generation and fine-tuning need it.

    `docs/howto/family.md` shows how to add one.
    """

    kind: type
    """The class of its configs."""
    types: tuple[str, ...]
    """The values of ``model_type`` that it reads."""
    layout: Callable[[Fields, Collection[str]], Layout]
    """From the fields of a config, and the names of the tensors that there are."""
    check_ks: Callable[[Model[Any]], object]
    """Check the keys and units that the layers of a model keep."""
    loss_fwd: Callable[..., tuple[Array, Any]]
    loss_bwd: Callable[..., Params]
    examples: Callable[[Model[Any], np.ndarray, np.random.Generator], Examples]
    """From plain text (B, Q)."""
    guess: Callable[..., tuple[NextTokens, Array]]
    """From a model and the data of `Examples` to its guesses, and the tokens that were right."""
    harmless: Mapping[str, str]
    """More fields of configs that do not change the numbers, each with the reason."""
    decoder: Callable[..., Decoder] | None = None
    """From a model and a prompt (..., Q), with the options `mask` and `workers`."""
    context: Callable[[Model[Any]], int | None] = lambda model: None
    """The largest number of positions; None: any number."""


def gather(
    tensors: Mapping[str, Array],
    layout: Layout,
    /,
    *,
    convert: Callable[[Array], Array] = lambda tensor: tensor,
) -> Params:
    """
    Nested parameters from the tensors of a checkpoint.

    Parameters
    ----------
    tensors : mapping
        Arrays by name.
    layout : Layout
        All that the model needs. A letter without a size stands for the first one that is found.
    convert : callable, optional
        Called with each tensor that is taken.

    Raises
    ------
    ValueError
        If a tensor is missing, has another shape, or is neither needed nor known.
    """
    sizes, flat = dict(layout.sizes), {}
    for name in layout.names:
        if name.tensor not in tensors:
            raise ValueError(f"the checkpoint has no tensor {name.tensor}")
        tensor, letters = tensors[name.tensor], name.shape.split()
        for letter, size in zip(letters, tensor.shape, strict=False):
            sizes.setdefault(letter, size)
        wanted = tuple(sizes.get(letter) for letter in letters)
        if tuple(tensor.shape) != wanted:
            raise ValueError(
                f"the tensor {name.tensor} must have shape {wanted}, got {tuple(tensor.shape)}"
            )
        tensor = convert(tensor)
        flat[name.path] = np.ascontiguousarray(tensor.T) if name.flipped else tensor
    taken = {name.tensor for name in layout.names}
    for tensor_name in tensors:
        ignored = any(re.fullmatch(pattern, tensor_name) for pattern in layout.ignored)
        if tensor_name not in taken and not ignored:
            raise ValueError(f"the checkpoint has a tensor that is not known: {tensor_name}")
    return unflatten(flat)


def scatter(params: Params, names: Iterable[Name], /) -> dict[str, Any]:
    """The tensors as a checkpoint names them, of parameters or of their gradients."""
    flat = flatten(params)
    return {
        name.tensor: array_namespace(flat[name.path]).matrix_transpose(flat[name.path])
        if name.flipped
        else flat[name.path]
        for name in names
    }
