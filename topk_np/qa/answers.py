"""A T5 model answers a question."""

from __future__ import annotations

import re

from topk_np._process import UserError
from topk_np.models.t5_blocks import T5
from topk_np.models.t5_generate import beam_search, generate

SEPARATOR = r" \n "  # between a question and its context: backslash and n


class QAError(UserError, ValueError):
    """A request that cannot be fulfilled; the message is one line."""


def prepared(question: str, context: str = "", /) -> str:
    r"""
    A question with its context, as UnifiedQA was trained to read them.

    In lower case, and without the first and the last single quote, as its training data were
    prepared.

    Examples
    --------
    >>> from topk_np.qa import prepared
    >>> print(prepared("Which is the best conductor?", "(A) Iron (B) Feather"))
    which is the best conductor? \n (a) iron (b) feather
    """
    whole = SEPARATOR.join(part.strip() for part in (question, context) if part.strip())
    return re.sub("'(.*)'", r"\1", whole.lower())


def answer(model: T5, text: str, /, *, beams: int = 1, max_tokens: int = 64) -> str:
    """
    What a model answers.

    Parameters
    ----------
    model : T5
        The model.
    text : str
        From `prepared`.
    beams : int, default 1
        Sequences that the search keeps open; with 1 each token is the most probable one.
    max_tokens : int, default 64
        How many tokens the answer has at most.

    Raises
    ------
    ValueError
        If the model has no tokenizer, or an option is not allowed.
    """
    ids = model.tokenizer.encode(text)
    if beams == 1:
        tokens = [int(token) for token in generate(model, ids, count=max_tokens)]
    else:
        tokens = beam_search(model, ids, beams=beams, count=max_tokens)[0].tokens.tolist()
    return model.tokenizer.decode(tokens).strip()
