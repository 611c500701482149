"""What ``python -m topk_np qa`` does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from topk_np._process import describe_ks, describe_machine, markdown, write_whole
from topk_np.models.named import load_named
from topk_np.models.t5_blocks import T5, T5Config, check_ks
from topk_np.qa.answers import QAError, answer, prepared
from topk_np.qa.evaluation import Evaluation, evaluate
from topk_np.qa.files import Question, read_questions
from topk_np.qa.published import datasets, published_table


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
        What to answer, and what it is about.
    file : Path, optional
        Questions in the format of UnifiedQA, in place of one.
    dataset : str, optional
        Whose published numbers to show, by default that whose name the file's folder has, or all.
    examples : int, optional
        The first so many questions of the file, by default all.
    attention_ks, ffn_ks : sequence of int
        Keys and units to keep in every layer: each of the first with each of the second, and for
        a file dense as well.
    beams, max_tokens : int
        As for `answer`.
    out : Path
        The JSON file for what was found.

    Raises
    ------
    QAError, ModelError
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
