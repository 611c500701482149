"""Generation: token after token, each the most probable one or drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import device

from topk_np._namespace import (
    Array,
    array_namespace,
    check_integer,
    check_number,
    cumulative_sum,
)
from topk_np.models.family import Decoder
from topk_np.models.load import family_of
from topk_np.models.model import Model

__all__ = ["generate"]

UNLIMITED = 64  # tokens to write by default where the model sets no limit


@dataclass(frozen=True)
class Sampling:
    """
    The rule by which the next token is chosen.

    Attributes
    ----------
    temperature : float, default 0
        Divisor of the scores before the softmax: below 1 probable tokens gain, above 1 they lose.
        0 always takes the most probable token.
    top_p : float, default 1
        Draw from the fewest of the most probable tokens that together have this probability
        ("nucleus sampling", Holtzman et al. 2020, arXiv:1904.09751). Above 0 and at most 1, which
        is all tokens.
    rng : numpy.random.Generator, optional
        Source of the random numbers, required where `temperature` is above 0.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    rng: np.random.Generator | None = None

    def __post_init__(self) -> None:
        """Check the attributes."""
        if check_number("temperature", self.temperature) < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < check_number("top_p", self.top_p) <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.rng is not None and not isinstance(self.rng, np.random.Generator):
            raise TypeError(f"rng must be a numpy Generator, got {type(self.rng).__name__}")
        if self.temperature > 0 and self.rng is None:
            raise ValueError("rng, a numpy Generator, is required where temperature is above 0")

    def choose(self, scores: Array, /) -> Array:
        """
        Choose a token for each row of scores.

        Parameters
        ----------
        scores : array (..., T)
            Unnormalised log probabilities.

        Returns
        -------
        int64 array (...,)
            Token ids. Among equal scores the lowest id goes first.

        Notes
        -----
        Drawing takes one number of `rng` for each row, whatever the scores, and nothing of T
        elements leaves the device.
        """
        xp = array_namespace(scores)
        if self.rng is None or self.temperature == 0:
            return xp.astype(xp.argmax(scores, axis=-1, keepdims=True), xp.int64)[..., 0]
        lead = tuple(scores.shape[:-1])
        rows = xp.reshape(xp.astype(scores, xp.float64), (-1, scores.shape[-1]))
        drawn = xp.asarray(self.rng.random((rows.shape[0], 1)), device=device(scores))
        order = xp.argsort(-rows, axis=-1, stable=True)
        rows = xp.take_along_axis(rows, order, axis=-1)
        mass = cumulative_sum(xp, xp.exp((rows - rows[:, :1]) / self.temperature))
        # the fewest whose mass reaches the share: those before which it is not yet reached
        short = xp.astype(mass < self.top_p * mass[:, -1:], xp.int64)
        last = xp.sum(short, axis=-1, keepdims=True)
        # where the drawn share of that mass lies among them
        wanted = drawn * xp.take_along_axis(mass, last, axis=-1)
        place = xp.sum(xp.astype(mass <= wanted, xp.int64), axis=-1, keepdims=True)
        place = xp.where(place > last, last, place)  # if the product was rounded up
        return xp.reshape(xp.take_along_axis(order, place, axis=-1), lead)


def generate(
    model: Model[Any],
    tokens: Array,
    /,
    *,
    mask: Array | None = None,
    count: int | None = None,
    stop: Sequence[int] = (),
    sampling: Sampling | None = None,
    workers: int | Executor | None = None,
) -> Iterator[Array]:
    """
    Yield the tokens that follow a prompt, or answer an input, each as soon as it is known.

    Parameters
    ----------
    model : Llama or T5
        The model.
    tokens : integer array (..., Q)
        The prompt, or several, padded to the same length; for T5 the input of the encoder.
    mask : bool array (..., Q), optional
        False at padding, which is on the left of the prompts of a Llama model: see
        `topk_np.models.tokenizers.pad`. All are True by default.
    count : int, optional
        The largest number of tokens to generate: by default as many as the model's context has room
        for, or 64 for a model without such a limit.
    stop : sequence of int, optional
        Tokens that end a sequence. They are yielded too; a sequence that has ended repeats its last
        token until all have ended.
    sampling : Sampling, optional
        The rule by which the next token is chosen, by default the most probable one.
    workers : int or concurrent.futures.Executor, optional
        Threads, passed on.

    Yields
    ------
    integer array (...,)
        The next token of each sequence, in the dtype of `tokens`.

    Raises
    ------
    TypeError, ValueError
        At the call: as `forward`, if `count` or a token of `stop` is not an integer or is negative,
        if the prompt and `count` tokens are more than the model's context, or if the model cannot
        write.

    Notes
    -----
    The prompt is read in one pass, then every token costs a pass over one position: attention takes
    time O(N) for the N positions so far, and all weights are read once, which bounds the speed.
    Keys and values are appended to caches and read in place. From the first token on BLAS is held
    to one thread, and our own threads share the large matrices.
    """
    family = family_of(model)
    if family.decoder is None:
        raise ValueError(f"model must be one that writes, got one of the family {family.types[0]}")
    count = None if count is None else check_integer("count", count, least=0)
    stops = check_stops(model, stop)
    decoder = family.decoder(model, tokens, mask=mask, workers=workers)
    if decoder.room is not None and (count is None or count > decoder.room):
        if count is not None:
            length = tokens.shape[-1]
            raise ValueError(
                f"the prompt and count must fit the model's context, {length + decoder.room} "
                f"tokens, got {length} and {count}"
            )
        count = decoder.room
    return _write(decoder, UNLIMITED if count is None else count, stops, sampling or Sampling())


def _write(
    decoder: Decoder, count: int, stops: Sequence[int], sampling: Sampling
) -> Iterator[Array]:
    """Choose up to `count` tokens."""
    xp, new = array_namespace(decoder.start), decoder.start
    ends = xp.asarray(list(stops), dtype=new.dtype, device=device(new))
    dtype, ended = new.dtype, None
    for _ in range(count):
        chosen = xp.astype(sampling.choose(decoder.scores(new)), dtype)
        new = chosen if ended is None else xp.where(ended, new, chosen)
        yield new[..., 0]
        ended = xp.any(new[..., None] == ends, axis=-1)
        if stops and bool(xp.all(ended)):
            return


def check_stops(model: Model[Any], stop: Sequence[int], /) -> list[int]:
    """The tokens that end a sequence, checked to be of the model's vocabulary."""
    stops = [check_integer(f"stop[{i}]", token, least=0) for i, token in enumerate(stop)]
    size = model.params["embedding"].shape[0]
    if stops and max(stops) >= size:
        raise ValueError(f"stop must lie in 0 .. {size - 1}, got {max(stops)}")
    return stops
