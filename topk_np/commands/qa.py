"""The command `qa`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topk_np.commands.options import Commands, at_least


def qa(commands: Commands) -> None:
    """Answer questions with a T5 model."""
    parser = commands.add_parser(
        "qa",
        help="a T5 model such as UnifiedQA answers questions, dense or with top-k",
        description="Answer one question, or those of a file in the format of UnifiedQA: exact "
        "match and F1 as in SQuAD 1.1, dense and with top-k, beside what the paper published.",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER",
        help="with config.json, safetensors and tokenizer.json or spiece.model",
    )
    for name, text in (
        ("--question", "what to answer"),
        ("--context", "what the question is about, or the choices: (a) iron (b) feather"),
    ):
        parser.add_argument(name, default=None if name == "--question" else "", help=text)
    parser.add_argument(
        "--file",
        type=Path,
        metavar="TSV",
        help=r"questions to answer, a line each: question \n context, a tab, the answer",
    )
    parser.add_argument(
        "--dataset",
        help="whose published numbers to show (that of the file's folder, or all)",
    )
    parser.add_argument(
        "--examples", type=at_least(1), metavar="N", help="answer the first N questions of a file"
    )
    for name, goal, text in (
        ("--attention-k", "attention_ks", "keys kept for each query; all by default"),
        ("--ffn-k", "ffn_ks", "feed-forward units kept for each token; all by default"),
    ):
        parser.add_argument(
            name, dest=goal, type=at_least(1), nargs="+", default=[], metavar="N", help=text
        )
    for name, number, text in (
        ("--beams", 1, "sequences that beam search keeps open; 1 is greedy (1)"),
        ("--max-tokens", 64, "tokens of an answer at most (64)"),
    ):
        parser.add_argument(name, type=at_least(1), default=number, metavar="N", help=text)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("topk_np_qa.json"),
        metavar="FILE",
        help="where answers and scores of a file go (topk_np_qa.json)",
    )
    parser.set_defaults(run=_qa, name="qa")


def _qa(**options: Any) -> None:
    from topk_np.qa import command

    command.run(**options)
