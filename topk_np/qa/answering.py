r"""
Question answering with T5 models such as UnifiedQA: questions, answers, and their scores.

Files of questions are as UnifiedQA has them: ``question \n context<TAB>answer``, one a line. The
``\n`` is not a newline but a backslash and an n; what follows it is the context, choices such as
``(a) iron (b) feather``, or both with another ``\n`` between them. Scores are those of SQuAD 1.1.

Sources: Khashabi et al., *UnifiedQA: Crossing Format Boundaries With a Single QA System*, 2020,
section 3, arXiv:2005.00700; Rajpurkar, Zhang, Lopyrev and Liang, *SQuAD: 100,000+ Questions for
Machine Comprehension of Text*, 2016, section 6.1, arXiv:1606.05250.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from time import process_time

from topk_np._process import UserError
from topk_np.models.model import LayerK
from topk_np.models.t5 import T5
from topk_np.models.t5_generate import beam_search, generate

SEPARATOR = r" \n "  # between a question and its context: backslash and n
ANSWERS = "_ans.jsonl"  # dev_ans.jsonl has the answers of dev.tsv where there are several
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


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
    Answer a question with a model.

    Parameters
    ----------
    model : T5
        The model.
    text : str
        From `prepared`.
    beams : int, default 1
        Sequences that the search keeps open; with 1 each token is the most probable one.
    max_tokens : int, default 64
        The most tokens of the answer.

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


@dataclass(frozen=True)
class Question:
    """A question and the answers that are right."""

    text: str
    """The question with its context, as a model is given it."""
    answers: tuple[str, ...]


def read_questions(path: Path, /) -> list[Question]:
    """
    Read a file of questions.

    Parameters
    ----------
    path : Path
        The file. Further tabs are followed by further answers. If there is a file
        ``dev_ans.jsonl`` next to ``dev.tsv``, as for SQuAD 1.1, the answers are taken from it: in
        each line a list of those of one question.

    Raises
    ------
    OSError
        If a file cannot be opened.
    ValueError
        If a line has no tab or no answer, there are no lines, or the second file is not of the
        right form; the message names file and line.
    """
    questions = []
    for number, line in _lines(path):
        text, *answers = (part.strip() for part in line.split("\t"))
        answers = [answer for answer in answers if answer]
        if not text or not answers:
            raise ValueError(f"{path}, line {number} must be a question, a tab and an answer")
        questions.append(Question(text, tuple(answers)))
    if not questions:
        raise ValueError(f"{path} must have at least one question, it has none")
    more = path.with_name(path.stem + ANSWERS)
    return _with_answers(questions, more) if more.is_file() else questions


def _with_answers(questions: list[Question], path: Path) -> list[Question]:
    """The questions with the answers of a file that has a list for each."""
    lists = []
    for number, line in _lines(path):
        try:
            answers = json.loads(line)
        except ValueError:
            answers = None
        if not isinstance(answers, list) or not answers:
            raise ValueError(f"{path}, line {number} must be a JSON list of answers")
        lists.append(tuple(map(str, answers)))
    if len(lists) != len(questions):
        raise ValueError(f"{path} must have {len(questions)} lists of answers, got {len(lists)}")
    pairs = zip(questions, lists, strict=True)
    return [Question(question.text, answers) for question, answers in pairs]


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error.reason}") from error
    return [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]


def normalized(text: str, /) -> str:
    """
    The words of a text that are compared: in lower case, without punctuation and articles.

    Examples
    --------
    >>> from topk_np.qa import normalized
    >>> normalized("  The U.S.A., an  ally ")
    'usa ally'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(given: str, right: Sequence[str], /) -> float:
    """
    Compare an answer with the right ones: 1 if it is one of them, else 0.

    Parameters
    ----------
    given : str
        The answer.
    right : sequence of str
        All answers that are right, at least one.

    Examples
    --------
    >>> from topk_np.qa import exact_match
    >>> exact_match("the Denver Broncos.", ["Broncos", "Denver Broncos"])
    1.0
    """
    return float(any(normalized(given) == normalized(one) for one in right))


def f1(given: str, right: Sequence[str], /) -> float:
    """
    The share of words that an answer has in common with the closest of the right ones.

    Parameters
    ----------
    given : str
        The answer.
    right : sequence of str
        All answers that are right, at least one.

    Returns
    -------
    float
        The harmonic mean of precision and recall of the words, with their multiplicity; 0 if none
        is shared, even if there are none at all.

    Examples
    --------
    >>> from topk_np.qa import f1
    >>> f1("in March 1906", ["1906"])
    0.5
    """
    return max(_f1(normalized(given).split(), normalized(one).split()) for one in right)


def _f1(given: list[str], right: list[str]) -> float:
    shared = sum((Counter(given) & Counter(right)).values())
    return 2 * shared / (len(given) + len(right)) if shared else 0.0


@dataclass(frozen=True)
class Evaluation:
    """The answers to questions with one setting, and their scores."""

    attention_k: LayerK
    ffn_k: LayerK
    exact_match: float
    """In percent, like `f1`."""
    f1: float
    cpu_seconds: float
    """CPU time of all cores for each question."""
    answers: tuple[str, ...]

    def same_as(self, other: Evaluation, /) -> float:
        """The percentage of questions to which both give the same answer."""
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
