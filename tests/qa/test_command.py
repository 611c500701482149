"""The command `qa`, run on the tiny T5."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.models.tiny import write_gguf
from tests.qa.models import CHARACTERS, SPECIAL, t5_folder, write_questions
from tests.test_cli import fails
from topk_np.cli import main
from topk_np.models import load_model
from topk_np.models.t5_generate import beam_search, generate
from topk_np.qa import answer, command, exact_match, f1, prepared
from topk_np.qa.answering import evaluate
from topk_np.qa.command import datasets, published, published_table

QUESTION, CONTEXT = "What was it?", "It was 'the BIG one', said she."
TEXT = r"what was it? \n it was the big one, said she."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny T5 with a tokenizer."""
    return t5_folder(tmp_path_factory.mktemp("t5"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The output of the command."""
    assert main(["qa", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def expected(folder: Path, *, count: int = 64, **ks: int) -> str:
    """The greedy answer, made token by token."""
    model = load_model(folder, **ks)  # type: ignore[arg-type]
    ids = np.array([*(3 + CHARACTERS.index(letter) for letter in TEXT), 1], np.int32)
    tokens = [int(token) for token in generate(model, ids, count=count)]
    known = [*SPECIAL, *CHARACTERS]
    return "".join(known[i] for i in tokens if len(SPECIAL) <= i < len(known)).strip()


def test_a_question_is_prepared_as_the_training_data_were() -> None:
    assert prepared(QUESTION, CONTEXT) == TEXT
    assert prepared("Who's there?") == "who's there?"
    assert prepared("A 'b' c 'd' e") == "a b' c 'd e"


@pytest.mark.parametrize(
    ("arguments", "ks"),
    [
        ([], {}),
        (["--ffn-k", 3, "--max-tokens", 9], {"ffn_k": 3, "count": 9}),
        (["--attention-k", 2, "--max-tokens", 9], {"attention_k": 2, "count": 9}),
    ],
    ids=str,
)
def test_a_question_is_answered_greedily(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    ks: dict[str, int],
) -> None:
    asked = ["--model", folder, "--question", QUESTION, "--context", CONTEXT]
    out = run(capsys, *asked, *arguments)
    assert out == expected(folder, **ks) + "\n"
    assert len(out) > 3
    assert ks == {} or out.strip() != expected(folder, count=9)


def test_a_question_is_answered_with_every_pair_of_ks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ks = ["--attention-k", 2, 4, "--ffn-k", 3, 60, "--max-tokens", 5]
    out = run(capsys, "--model", folder, "--question", QUESTION, "--context", CONTEXT, *ks)
    assert out.splitlines() == [
        f"attention k = {a} and feed-forward k = {f}: "
        + expected(folder, count=5, attention_k=a, ffn_k=f)
        for a in (2, 4)
        for f in (3, 60)
    ]


def test_beam_search_finds_the_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(folder)
    ids = model.tokenizer.encode("what?")
    best = beam_search(model, ids, beams=3, count=4)[0].tokens
    out = run(capsys, "--model", folder, "--question", "What?", "--beams", 3, "--max-tokens", 4)
    assert out == model.tokenizer.decode(best.tolist()).strip() + "\n"


def test_a_file_is_evaluated_dense_and_with_topk(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(folder)
    texts = [r"Who? \n It was she.", r"When? \n In 1906.", r"Why? \n (a) iron (b) feather"]
    given = [answer(model, prepared(text), max_tokens=6) for text in texts]
    rights = [(f"The {given[0]}!",), (f"{given[1]} and more", "x"), ("nothing of it",)]
    rows = [(text, *right) for text, right in zip(texts, rights, strict=True)]
    file = write_questions(tmp_path / "boolq" / "dev.tsv", *rows)
    out = tmp_path / "new" / "qa.json"
    shown = run(
        capsys, "--model", folder, "--file", file, "--ffn-k", 3, 64, "--out", out,
        "--max-tokens", 6,
    )  # fmt: skip

    record = json.loads(out.read_text())
    assert [one["ffn_k"] for one in record["found"]] == [None, 3, 64]
    dense, few, all_units = record["found"]
    assert dense["answers"] == all_units["answers"] == given
    assert dense["exact_match"] == pytest.approx(100 / 3)
    f1s = [f1(one, right) for one, right in zip(given, rights, strict=True)]
    assert f1s[0] == 1
    assert 0 < f1s[1] < 1
    assert dense["f1"] == pytest.approx(100 * sum(f1s) / 3)
    matches = [exact_match(one, right) for one, right in zip(few["answers"], rights, strict=True)]
    assert few["exact_match"] == pytest.approx(100 * sum(matches) / 3)
    assert record["questions"] == 3
    assert record["machine"]["cores"] >= 1

    same = 100 * sum(a == b for a, b in zip(few["answers"], given, strict=True)) / 3
    lines = shown.splitlines()
    assert re.fullmatch(rf"\| dense +\| +33\.3 \| +{dense['f1']:.1f} \| +100\.0 \| .*", lines[2])
    assert re.fullmatch(
        rf"\| feed-forward k = 3 +\| +{few['exact_match']:.1f} \| +{few['f1']:.1f} "
        rf"\| +{same:.1f} \| .*",
        lines[3],
    )
    # Beside it the paper's numbers, of the dataset that the folder is named after.
    assert re.search(r"\| boolq +\| 82\.0 / 82\.0 \|", shown)
    assert "narrativeqa" not in shown


def test_other_files_are_shown_beside_all_that_was_published(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_questions(tmp_path / "mine" / "q.tsv", ("a?", "b"), ("c?", "d"))
    common = ["--model", folder, "--file", file, "--out", tmp_path / "qa.json", "--max-tokens", 1]
    shown = run(capsys, *common, "--examples", 1)
    assert json.loads((tmp_path / "qa.json").read_text())["questions"] == 1
    for name in (*datasets(), "unifiedqa-t5-base", "unifiedqa-t5-3b", "unifiedqa-t5-11b"):
        assert f"| {name} " in shown
    shown = run(capsys, *common, "--dataset", "squad2")
    assert "squad2" in shown
    assert "boolq" not in shown


def test_all_published_numbers_are_shown() -> None:
    table = published_table()
    for row in published():
        assert f"{row.exact_match} / {row.f1}" in table
    assert len(published()) == 266


def test_an_interrupt_leaves_what_was_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(model: object, *arguments: object, **options: object) -> object:
        if model.ffn_k is not None:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return evaluate(model, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "evaluate", once)
    file = write_questions(tmp_path / "q.tsv", ("a?", "b"))
    out = tmp_path / "qa.json"
    asked = ["--model", folder, "--file", file, "--ffn-k", 3, "--out", out, "--max-tokens", 1]
    assert main(["qa", *map(str, asked)]) == 130
    assert len(json.loads(out.read_text())["found"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --question or --file is required, and not both"),
        (["--question", "a?", "--file", "b"], "either --question or --file is required"),
        (["--file", "none.tsv"], "--file none.tsv: No such file or directory"),
        (["--question", "a?", "--ffn-k", "0"], "argument --ffn-k: must be at least 1, got 0"),
        (
            ["--question", "a?", "--dataset", "x"],
            "--dataset must be one of ai2_science_elementary, ",
        ),
        (["--question", "a?", "--model", "gone"], "--model must be the path of a folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in fails(capsys, "qa", "--model", str(folder), *arguments)


def test_models_of_other_kinds_and_without_a_tokenizer_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["qa", "--question", "a?", "--model"]
    llama = write_gguf(tmp_path / "tiny.gguf")
    assert "must be a T5 model" in fails(capsys, *asked, str(llama))
    bare = t5_folder(tmp_path, tokenizer=False)
    assert "the model has no tokenizer" in fails(capsys, *asked, str(bare))
    file = tmp_path / "q.tsv"
    file.write_text("a?\n")
    assert "line 1 must be a question" in fails(
        capsys, "qa", "--model", str(bare), "--file", str(file)
    )
