"""Generation with a Llama model: token after token, through a cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from array_api_compat import device

from topk_np import KVCache
from topk_np._namespace import Array, check_integer
from topk_np.models.llama import LlamaParams, check_tokens, forward, logits
from topk_np.models.per_layer import LayerK, per_layer
from topk_np.models.sampling import Sampling


def generate(
    params: LlamaParams,
    tokens: Array,
    /,
    *,
    count: int | None = None,
    stop: Sequence[int] = (),
    sampling: Sampling | None = None,
    attention_k: LayerK = None,
    ffn_k: LayerK = None,
    workers: int | None = None,
) -> Iterator[Array]:
    """
    The tokens that follow, each as soon as it is known.

    Parameters
    ----------
    params : LlamaParams
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
    attention_k, ffn_k : int, sequence or mapping, optional
        As for `forward`.
    workers : int, optional
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
    Keys and values are appended to caches and read in place. Products of single rows run on BLAS's
    own threads; on a machine that is busy otherwise one of them (``OPENBLAS_NUM_THREADS=1``) is
    several times faster than two that wait for each other.
    """
    xp = check_tokens(params, tokens)
    length, context = tokens.shape[-1], params.config.context
    room = context - length
    count = room if count is None else check_integer("count", count, least=0)
    if count > room:
        raise ValueError(
            f"the prompt and count must fit the model's context, {context} tokens, "
            f"got {length} and {count}"
        )
    size = params.embedding.shape[0]
    stops = [check_integer(f"stop[{i}]", token, least=0) for i, token in enumerate(stop)]
    if stops and max(stops) >= size:
        raise ValueError(f"stop must lie in 0 .. {size - 1}, got {max(stops)}")
    depth = len(params.layers)
    options: dict[str, Any] = {
        "attention_k": per_layer("attention_k", attention_k, depth),
        "ffn_k": per_layer("ffn_k", ffn_k, depth),
        "caches": [KVCache() for _ in params.layers],
        "workers": workers,
    }
    sampling = sampling or Sampling()

    def steps() -> Iterator[Array]:
        ends = xp.asarray(stops, dtype=tokens.dtype, device=device(tokens))
        new, ended = tokens, None
        for _ in range(count):
            hidden = forward(params, new, **options)[..., -1:, :]
            chosen = xp.astype(sampling.choose(logits(params, hidden)), tokens.dtype)
            new = chosen if ended is None else xp.where(ended, new, chosen)
            yield new[..., 0]
            ended = xp.any(new[..., None] == ends, axis=-1)
            if stops and bool(xp.all(ended)):
                return

    return steps()
