"""Generation with a T5 model: with its own defaults, and by beam search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from array_api_compat import device

from topk_np import KVCache
from topk_np._namespace import Array, array_namespace, check_integer, check_number, to_numpy
from topk_np.models import decode as decoding
from topk_np.models.decode import Sampling, check_stops
from topk_np.models.t5 import T5, decode, encode, logits
from topk_np.schedule.threads import WorkerTeam, lasting

__all__ = ["Beam", "beam_search", "generate"]


def generate(
    model: T5,
    tokens: Array,
    /,
    *,
    mask: Array | None = None,
    count: int = 64,
    stop: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    workers: int | Executor | None = None,
) -> Iterator[Array]:
    """
    Yield the tokens of the output, each as soon as it is known.

    Parameters
    ----------
    model : T5
        The model.
    tokens : integer array (..., N)
        The input.
    mask : bool array (..., N), optional
        False at its padding.
    count : int, default 64
        The largest number of tokens to generate.
    stop : sequence of int, optional
        Tokens that end a sequence, by default the model's. They are yielded too; a sequence that
        has ended repeats its last token until all have ended.
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
        At the call: as `encode`, or if `count` or a token of `stop` is not allowed.

    Notes
    -----
    The encoder runs once, and its keys and values are projected once; every token then costs a
    pass over one position of the decoder.
    """
    return decoding.generate(
        model,
        tokens,
        mask=mask,
        count=count,
        stop=model.stop if stop is None else stop,
        sampling=sampling,
        workers=workers,
    )


class Beam(NamedTuple):
    """A sequence found by beam search."""

    tokens: np.ndarray
    """(n,) without the start token; the last one ends it, unless `count` cut it off."""
    score: float
    """Its log probability divided by ``n ** length_penalty``."""


def beam_search(
    model: T5,
    tokens: Array,
    /,
    *,
    beams: int = 4,
    mask: Array | None = None,
    count: int = 64,
    stop: Sequence[int] | None = None,
    length_penalty: float = 1.0,
    workers: int | Executor | None = None,
) -> list[Beam]:
    """
    Find the most probable outputs with a limited number of open sequences, best first.

    Parameters
    ----------
    model : T5
        The model.
    tokens : integer array (N,)
        One input.
    beams : int, default 4
        Sequences to continue at each step, and the largest number to return.
    mask : bool array (N,), optional
        False at its padding.
    count : int, default 64
        The largest number of tokens of a sequence, at least 1.
    stop : sequence of int, optional
        Tokens that end a sequence, by default the model's.
    length_penalty : float, default 1.0
        The log probability of a sequence of n tokens is divided by ``n ** length_penalty``: above
        0 longer ones gain.
    workers : int or concurrent.futures.Executor, optional
        Threads, passed on.

    Returns
    -------
    list of Beam
        At most `beams`, and at least one.

    Raises
    ------
    TypeError, ValueError
        As `generate`; if `tokens` is not one sequence, or `beams` or `count` is below 1.

    Notes
    -----
    A step costs a pass over one position of `beams` sequences, whose caches are reordered. The
    search ends when no open sequence can become one of the best, even if it ended at its present
    log probability at the length that suits it best.
    """
    beams = check_integer("beams", beams, least=1)
    count = check_integer("count", count, least=1)
    penalty = check_number("length_penalty", length_penalty)
    stops = check_stops(model, model.stop if stop is None else stop)
    if tokens.ndim != 1:
        raise ValueError(f"tokens must have shape (N,), got {tuple(tokens.shape)}")
    xp = array_namespace(tokens)
    encoded = encode(model, tokens, mask=mask, workers=workers)[None, ...]
    mask = None if mask is None else mask[None, :]
    caches = [(KVCache(), KVCache()) for _ in model.params["decoder"]["layers"]]
    found: list[Beam] = []
    written = np.asarray([[]], np.int64)  # a row for each open sequence
    total = np.zeros(1)  # their log probabilities
    new = xp.full_like(tokens[None, :1], model.config.start)
    pool = lasting(workers)
    for n in range(1, count + 1):
        with WorkerTeam(pool):  # as in `topk_np.models.t5`
            # The encoder's one row serves all sequences.
            hidden = decode(model, new, encoded, mask=mask, caches=caches, workers=pool)
            scores = to_numpy(logits(model, hidden)[:, 0, :])
        size = model.params["embedding"].shape[0]
        every = total[:, None] + _log_softmax(scores)
        # Each open sequence can end in len(stops) ways; `beams` others are among these.
        most = beams * (1 + len(stops))
        best = np.argsort(-every, axis=None, kind="stable")[:most]
        open_ones: list[tuple[int, int]] = []
        for place in best:
            row, token = divmod(int(place), size)
            if token in stops or n == count:
                sequence = np.append(written[row], token)
                found.append(Beam(sequence, float(every[row, token] / n**penalty)))
            elif len(open_ones) < beams:
                open_ones.append((row, token))
        found = sorted(found, key=lambda beam: -beam.score)[:beams]
        if not open_ones:
            break
        parents, chosen = np.asarray(open_ones).T
        total = every[parents, chosen]
        lengths = np.asarray([n + 1, count])
        bound = float(np.max(total[0] / lengths**penalty))
        if len(found) == beams and found[-1].score >= bound:
            break
        written = np.concatenate([written[parents], chosen[:, None]], axis=1)
        order = xp.asarray(parents, device=device(tokens))
        caches = [(_reordered(own, order), cross) for own, cross in caches]
        new = xp.asarray(chosen[:, None], dtype=tokens.dtype, device=device(tokens))
    return found


def _reordered(cache: KVCache, order: Array) -> KVCache:
    """A cache with the sequences of another in the given order."""
    xp, made = array_namespace(cache.key), KVCache(capacity=cache.capacity)
    made.append(xp.take(cache.key, order, axis=0), xp.take(cache.value, order, axis=0))
    return made


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    """The log probabilities (B, T) in float64."""
    shifted = np.asarray(scores, np.float64) - np.max(scores, axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True)))
