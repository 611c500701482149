"""How well a model answers the questions of a file, dense and with top-k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from time import process_time

from topk_np.models.model import LayerK
from topk_np.models.t5 import T5
from topk_np.qa.answers import answer, prepared
from topk_np.qa.files import Question
from topk_np.qa.scores import exact_match, f1


@dataclass(frozen=True)
class Evaluation:
    """How well the questions were answered with one setting."""

    attention_k: LayerK
    ffn_k: LayerK
    exact_match: float
    """In percent, as the next."""
    f1: float
    cpu_seconds: float
    """Of all cores together, for each question."""
    answers: tuple[str, ...]

    def same_as(self, other: Evaluation, /) -> float:
        """For how many of the questions, in percent, both give the same answer."""
        pairs = zip(self.answers, other.answers, strict=True)
        return 100 * mean(one == another for one, another in pairs)


def evaluate(
    model: T5,
    questions: Sequence[Question],
    /,
    *,
    beams: int = 1,
    max_tokens: int = 64,
    tick: Callable[[], object] = lambda: None,
) -> Evaluation:
    """
    Answer all questions, with the keys and units that a model keeps.

    Parameters
    ----------
    model : T5
        The model.
    questions : sequence of Question
        At least one.
    beams, max_tokens : int
        As for `answer`.
    tick : callable, optional
        Called after each question.

    Returns
    -------
    Evaluation
        Exact match and F1 are means over the questions.
    """
    start, answers = process_time(), []
    for question in questions:
        answers.append(answer(model, prepared(question.text), beams=beams, max_tokens=max_tokens))
        tick()
    seconds = (process_time() - start) / len(questions)
    scored = list(zip(answers, questions, strict=True))
    return Evaluation(
        model.attention_k,
        model.ffn_k,
        100 * mean(exact_match(given, question.answers) for given, question in scored),
        100 * mean(f1(given, question.answers) for given, question in scored),
        seconds,
        tuple(answers),
    )
