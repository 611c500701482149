"""The command ``generate``: a model continues a text, or answers a message."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np

from topk_np._process import UserError
from topk_np.models.adapter import Adapter
from topk_np.models.decode import Sampling, generate
from topk_np.models.load import family_of, load_named
from topk_np.models.tokenizers import chat_prompt


def run(
    *,
    model: str,
    prompt: str,
    attention_k: int | None,
    ffn_k: int | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    chat: bool,
    adapter: Path | None = None,
) -> None:
    """
    Print what follows the prompt as it comes, and at the end its speed on stderr.

    Parameters
    ----------
    model : str
        A key of `WEIGHTS`, which are downloaded once, or the path of a GGUF file or of a folder, as
        for `load_model`.
    prompt : str
        The text to continue, or with `chat` the message to answer.
    attention_k, ffn_k : int, optional
        Keys and units to keep in every layer; dense by default.
    max_tokens : int
        The largest number of tokens to generate, if the model's context holds that many.
    temperature, top_p : float
        As in `Sampling`.
    seed : int
        Of the random numbers.
    chat : bool
        If True, the prompt is a message in a conversation.
    adapter : Path, optional
        The weights or updates that `finetune` trained for this model.

    Raises
    ------
    UserError
        With a message of one line.
    """
    try:
        sampling = Sampling(temperature, top_p, np.random.default_rng(seed))
        loaded = load_named(model, attention_k=attention_k, ffn_k=ffn_k)
        if adapter is not None:
            loaded = Adapter.load(adapter).apply(loaded)
        ids = loaded.tokenizer.encode(chat_prompt(prompt, loaded.chat_template) if chat else prompt)
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"--adapter {adapter}: {error.strerror}") from error
    family = family_of(loaded)
    if family.decoder is None:
        raise UserError(f"--model {model} must be a model that writes, such as Llama or T5")
    context = family.context(loaded)
    if context is None:
        room = max_tokens
    elif 0 < len(ids) < context:
        room = context - len(ids)
    else:
        raise UserError(
            f"--prompt must have 1 to {context - 1} tokens for this model, got {len(ids)}"
        )
    speed = _Speed(len(ids))
    tokens = generate(
        loaded,
        ids,
        count=min(max_tokens, room),
        stop=loaded.stop,
        sampling=sampling,
    )
    try:
        for piece in loaded.tokenizer.stream(speed.watch(map(int, tokens))):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        _end(speed)
        raise
    _end(speed)


def _end(speed: _Speed) -> None:
    print(flush=True)
    print(speed, file=sys.stderr)


class _Speed:
    """The time that the prompt and the tokens after the first one take."""

    def __init__(self, prompt: int) -> None:
        self._prompt = prompt
        self._times = [perf_counter()]

    def watch(self, tokens: Iterator[int]) -> Iterator[int]:
        """The same tokens, timed."""
        for token in tokens:
            self._times.append(perf_counter())
            yield token

    def __str__(self) -> str:
        start, *times = self._times
        if not times:
            return "stopped before the first token"
        read = f"{self._prompt} tokens read in {times[0] - start:.1f} s, {len(times)} written"
        if len(times) == 1:
            return read
        return f"{read}, {(len(times) - 1) / (times[-1] - times[0]):.1f} a second"
