r"""
Files of questions as UnifiedQA has them: ``question \n context<TAB>answer``, one a line.

The ``\n`` is no newline but a backslash and an n; what follows it is the context, choices such as
``(a) iron (b) feather``, or both with another ``\n`` between them. Khashabi et al., *UnifiedQA:
Crossing Format Boundaries With a Single QA System*, 2020, section 3, arXiv:2005.00700.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

ANSWERS = "_ans.jsonl"  # dev_ans.jsonl has the answers of dev.tsv where there are several


@dataclass(frozen=True)
class Question:
    """A question and the answers that are right."""

    text: str
    """With what belongs to it, as a model is given it."""
    answers: tuple[str, ...]


def read_questions(path: Path, /) -> list[Question]:
    """
    Read a file of questions.

    Parameters
    ----------
    path : Path
        The file. What follows further tabs are further answers. If ``dev.tsv`` has a file
        ``dev_ans.jsonl`` beside it, as that of SQuAD 1.1 has, the answers are taken from that: in
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
