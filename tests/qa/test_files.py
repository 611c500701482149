"""Files of questions, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.qa.models import write_lists, write_questions
from topk_np.qa import Question, read_questions


def test_questions_are_read_with_all_their_answers(tmp_path: Path) -> None:
    rows = [
        (r"Who was Billy? \n (A) A teacher (B) The big kid \n Billy was big.", "The big kid"),
        (r"When? \n (Title) In 1906, or '07.", "1906", "1907"),
        (r"Was it? \n \u2047 No. ", " no "),
    ]
    path = write_questions(tmp_path / "dev.tsv", *rows)
    path.write_text(path.read_text() + "\n  \n")
    assert read_questions(path) == [
        Question(rows[0][0], ("The big kid",)),
        Question(rows[1][0], ("1906", "1907")),
        Question(rows[2][0].strip(), ("no",)),
    ]


def test_answers_beside_a_file_are_taken_instead(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "dev.tsv", ("one?", "1"), ("two?", "2"))
    write_lists(tmp_path / "dev_ans.jsonl", ["1", "one", "One"], ["two"])
    write_lists(tmp_path / "train_ans.jsonl", ["of another file"])
    assert [question.answers for question in read_questions(path)] == [
        ("1", "one", "One"),
        ("two",),
    ]


@pytest.mark.parametrize(
    ("text", "answers", "message"),
    [
        ("one?\t1\ntwo?\n", None, r"dev\.tsv, line 2 must be a question, a tab and an answer"),
        ("one?\t \n", None, r"dev\.tsv, line 1 must be a question, a tab and an answer"),
        ("\t1\n", None, r"dev\.tsv, line 1 must be a question"),
        ("\n\n", None, r"dev\.tsv must have at least one question"),
        ("one?\t1\n", "[]\n", r"dev_ans\.jsonl, line 1 must be a JSON list of answers"),
        ("one?\t1\n", '["1"\n', r"dev_ans\.jsonl, line 1 must be a JSON list of answers"),
        ("one?\t1\n", '["1"]\n["2"]\n', r"dev_ans\.jsonl must have 1 lists of answers, got 2"),
        ("\udcff?\t1\n", None, r"dev\.tsv must be text in UTF-8"),
    ],
)
def test_what_is_no_file_of_questions_is_named(
    tmp_path: Path, text: str, answers: str | None, message: str
) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    if answers is not None:
        (tmp_path / "dev_ans.jsonl").write_text(answers)
    with pytest.raises(ValueError, match=message):
        read_questions(path)
