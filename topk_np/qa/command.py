"""
The program ``python -m topk_np qa``: answer questions, and compare with the paper's numbers.

These are of UnifiedQA with top-k feed-forward layers, without training: Gupta, Dar, Goodman, Ciprut
and Berant, *Memory-efficient Transformers via Top-k Attention*, 2021, section 4.3 and its appendix,
arXiv:2106.06899.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path

from topk_np._process import describe_ks, describe_machine, markdown, write_whole
from topk_np.models.load import load_named
from topk_np.models.t5 import T5, T5Config, check_ks
from topk_np.qa.answering import (
    Evaluation,
    QAError,
    Question,
    answer,
    evaluate,
    prepared,
    read_questions,
)

FILE = "unifiedqa_zero_shot.csv"  # the paper's numbers


def run(
    *,
    model: str,
    question: str | None,
    context: str,
    file: Path | None,
    dataset: str | None,
    examples: int | None,
    attention_ks: Sequence[int],
    ffn_ks: Sequence[int],
    beams: int,
    max_tokens: int,
    out: Path,
) -> None:
    """
    Print the answer to a question, or answer those of a file and say how well.

    Parameters
    ----------
    model : str
        The path of a folder with a T5 model, as for `load_model`.
    question, context : str
        The question, and its context.
    file : Path, optional
        Questions in the format of UnifiedQA, in place of one.
    dataset : str, optional
        The dataset whose published numbers are shown; by default the one that the file's folder is
        named after, or all.
    examples : int, optional
        The number of questions of the file to answer, by default all.
    attention_ks, ffn_ks : sequence of int
        Keys and units to keep in every layer: each of the first with each of the second, and for
        a file dense as well.
    beams, max_tokens : int
        As for `answer`.
    out : Path
        The JSON file for answers and scores.

    Raises
    ------
    UserError
        With a message of one line.
    """
    if (question is None) == (file is None):
        raise QAError("either --question or --file is required, and not both")
    if dataset not in (None, *datasets()):
        raise QAError(f"--dataset must be one of {', '.join(datasets())}, got {dataset!r}")
    questions = [] if file is None else _read(file, examples)
    loaded: T5 = load_named(model, T5Config)
    settings = list(_settings(loaded, attention_ks, ffn_ks))
    how = {"beams": beams, "max_tokens": max_tokens}
    try:
        if question is not None:
            text = prepared(question, context)
            for own in settings:
                words = f"{_label(own)}: " if len(settings) > 1 else ""
                print(words + answer(own, text, **how), flush=True)
            return
        assert file is not None
        dense = replace(loaded, attention_k=None, ffn_k=None)
        top = [own for own in settings if (own.attention_k, own.ffn_k) != (None, None)]
        about = {"model": model, "file": str(file), "questions": len(questions)}
        found = _evaluate([dense, *top], questions, how, about, out)
    except ValueError as error:
        raise QAError(str(error)) from error
    print(_table(found))
    _print_published(dataset, file)
    print(f"\nAnswers and scores: {out}")


def _read(file: Path, examples: int | None) -> list[Question]:
    try:
        return read_questions(file)[:examples]
    except OSError as error:
        raise QAError(f"--file {file}: {error.strerror}") from error
    except ValueError as error:
        raise QAError(f"--file {error}") from error


def _settings(model: T5, attention_ks: Sequence[int], ffn_ks: Sequence[int]) -> Iterator[T5]:
    """The model with each pair of k."""
    for attention_k in attention_ks or (None,):
        for ffn_k in ffn_ks or (None,):
            own = replace(model, attention_k=attention_k, ffn_k=ffn_k)
            check_ks(own)
            yield own


def _evaluate(
    models: Sequence[T5],
    questions: Sequence[Question],
    how: Mapping[str, int],
    about: Mapping[str, object],
    out: Path,
) -> list[Evaluation]:
    """Evaluate one model after the other; the file has each as soon as it is known."""
    from tqdm import tqdm

    found: list[Evaluation] = []
    total = len(models) * len(questions)
    with tqdm(total=total, desc="qa", file=sys.stderr, leave=False) as bar:
        for model in models:
            bar.set_postfix_str(_label(model))
            found.append(evaluate(model, questions, tick=bar.update, **how))
            results = [asdict(one) for one in found]
            record = {"machine": describe_machine(), **about, **how, "found": results}
            try:
                out.parent.mkdir(parents=True, exist_ok=True)
                write_whole(out, (json.dumps(record, indent=1) + "\n").encode())
            except OSError as error:
                raise QAError(f"--out {out}: {error.strerror}") from error
    return found


def _label(model: T5 | Evaluation) -> str:
    """The k of a model in words."""
    return describe_ks({"attention_k": model.attention_k, "ffn_k": model.ffn_k})


def _table(found: Sequence[Evaluation]) -> str:
    head = ["", "exact match", "F1", "answers as dense", "CPU seconds each"]
    rows = [
        [
            _label(one),
            f"{one.exact_match:.1f}",
            f"{one.f1:.1f}",
            f"{one.same_as(found[0]):.1f}",
            f"{one.cpu_seconds:.2f}",
        ]
        for one in found
    ]
    return markdown(head, rows)


def _print_published(dataset: str | None, file: Path) -> None:
    folder = file.resolve().parent.name
    if dataset is None and folder in datasets():
        dataset = folder
    print("\nPublished, exact match / F1 by feed-forward k (Gupta et al. 2021, other models):\n")
    print(published_table(dataset))


@dataclass(frozen=True)
class Published:
    """A row of the paper's table."""

    model: str
    dataset: str
    d_ff: int
    k: int
    """Equal to `d_ff` for the dense model."""
    exact_match: float
    f1: float


def published() -> list[Published]:
    """All rows."""
    with (files("topk_np.qa") / FILE).open(encoding="utf-8") as file:
        return [
            Published(
                row["model"],
                row["dataset"],
                int(row["d_ff"]),
                int(row["k"]),
                float(row["exact_match"]),
                float(row["f1"]),
            )
            for row in csv.DictReader(file)
        ]


def datasets() -> list[str]:
    """Names of the datasets, which are those of UnifiedQA's folders."""
    return sorted({row.dataset for row in published()})


def published_table(dataset: str | None = None, /) -> str:
    """Exact match and F1 by k: of one dataset, or of all, model by model."""
    rows = [row for row in published() if dataset in (None, row.dataset)]
    tables = []
    for model, width in dict.fromkeys((row.model, row.d_ff) for row in rows):
        own = [row for row in rows if row.model == model]
        ks = list(dict.fromkeys(row.k for row in own))
        head = [model, *("dense" if k == width else f"k = {k}" for k in ks)]
        cells = {(row.dataset, row.k): f"{row.exact_match} / {row.f1}" for row in own}
        names = dict.fromkeys(row.dataset for row in own)
        body = [[name, *(cells.get((name, k), "-") for k in ks)] for name in names]
        tables.append(markdown(head, body))
    return "\n\n".join(tables)
