"""The next token from the scores of all: the most probable one, or one drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import device

from topk_np._namespace import Array, array_namespace, check_number, cumulative_sum


@dataclass(frozen=True)
class Sampling:
    """
    How the next token is chosen.

    Attributes
    ----------
    temperature : float, default 0
        What scores are divided by before the softmax: below 1 probable tokens gain, above 1 they
        lose. 0 takes the most probable token, always.
    top_p : float, default 1
        Draw from the fewest of the most probable tokens that together have this probability
        ("nucleus sampling", Holtzman et al. 2020, arXiv:1904.09751). Above 0 and at most 1, which
        is all tokens.
    rng : numpy.random.Generator, optional
        Where the numbers come from, required where `temperature` is above 0.
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
        A token for each row of scores.

        Parameters
        ----------
        scores : array (..., T)
            Unnormalised log probabilities.

        Returns
        -------
        int64 array (...,)
            Token ids. The lower id among equal scores goes first.

        Notes
        -----
        Drawing takes one number of `rng` a row, whatever the scores, and nothing of T elements
        leaves the device.
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
        place = xp.where(place > last, last, place)  # were the product rounded up
        return xp.reshape(xp.take_along_axis(order, place, axis=-1), lead)


GREEDY = Sampling()
