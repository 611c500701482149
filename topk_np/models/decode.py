"""Generation: token after token, through a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor

from array_api_compat import device

from topk_np import KVCache
from topk_np._namespace import Array, array_namespace, check_integer
from topk_np.models.llama import forward, logits, output_layer
from topk_np.models.llama_blocks import Llama, check_ks
from topk_np.models.one_row import one_row_linear
from topk_np.models.sampling import Sampling
from topk_np.models.tokens import check_tokens
from topk_np.schedule.threads import WorkerTeam, lasting

__all__ = ["generate"]


def generate(
    model: Llama,
    tokens: Array,
    /,
    *,
    count: int | None = None,
    stop: Sequence[int] = (),
    sampling: Sampling | None = None,
    workers: int | Executor | None = None,
) -> Iterator[Array]:
    """
    The tokens that follow, each as soon as it is known.

    Parameters
    ----------
    model : Llama
        The model.
    tokens : integer array (..., Q)
        The prompt, or several of the same length.
    count : int, optional
        How many tokens to generate at most, by default as many as the model's context has room for.
    stop : sequence of int, optional
        Tokens that end a sequence. They are yielded too; a sequence that has ended repeats the one
        that ended it until all have.
    sampling : Sampling, optional
        How the next token is chosen, by default the most probable one.
    workers : int or concurrent.futures.Executor, optional
        Threads, passed on.

    Yields
    ------
    integer array (...,)
        The next token of each sequence, in the dtype of `tokens`.

    Raises
    ------
    TypeError, ValueError
        At the call: as `forward`, if `count` or a token of `stop` is no integer or is negative, or
        if the prompt and `count` tokens are more than the model's context.

    Notes
    -----
    The prompt is read in one pass, then every token costs a pass over one position: time O(N) in
    the N positions so far for attention, and all weights are read once, which bounds the speed.
    Keys and values are appended to caches and read in place. From the first token on BLAS is held
    to one thread, and ours share the large matrices.
    """
    check_tokens(model.params["embedding"], tokens)
    length, context = tokens.shape[-1], model.config.context
    room = context - length
    count = room if count is None else check_integer("count", count, least=0)
    if count > room:
        raise ValueError(
            f"the prompt and count must fit the model's context, {context} tokens, "
            f"got {length} and {count}"
        )
    stops = check_stops(model.params["embedding"], stop)
    check_ks(model)
    caches = [KVCache() for _ in model.params["layers"]]
    pool = lasting(workers)

    def scores(new: Array) -> Array:
        if new.shape[-1] > 1:
            hidden = forward(model, new, caches=caches, workers=workers)
            return logits(model, hidden[..., -1:, :])
        # BLAS's own threads would wait busily for the next product, in the way of ours.
        with WorkerTeam(pool):
            hidden = forward(model, new, caches=caches, workers=pool)
            return one_row_linear(hidden, output_layer(model), pool)

    return write(scores, tokens, count, stops, sampling)


def write(
    scores: Callable[[Array], Array],
    tokens: Array,
    count: int,
    stops: Sequence[int],
    sampling: Sampling | None,
) -> Iterator[Array]:
    """
    Choose up to `count` tokens, each by the scores (..., 1, T) of what follows those before it.

    `scores` is given what it has not seen yet: `tokens`, then each that was chosen.
    """
    xp, sampling = array_namespace(tokens), sampling or Sampling()
    ends = xp.asarray(list(stops), dtype=tokens.dtype, device=device(tokens))
    new, ended = tokens, None
    for _ in range(count):
        chosen = xp.astype(sampling.choose(scores(new)), tokens.dtype)
        new = chosen if ended is None else xp.where(ended, new, chosen)
        yield new[..., 0]
        ended = xp.any(new[..., None] == ends, axis=-1)
        if stops and bool(xp.all(ended)):
            return


def check_stops(table: Array, stop: Sequence[int]) -> list[int]:
    """The tokens that end a sequence, each a row of `table`."""
    stops = [check_integer(f"stop[{i}]", token, least=0) for i, token in enumerate(stop)]
    if stops and max(stops) >= table.shape[0]:
        raise ValueError(f"stop must lie in 0 .. {table.shape[0] - 1}, got {max(stops)}")
    return stops
