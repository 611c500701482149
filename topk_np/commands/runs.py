"""Commands that train: `train` and `finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topk_np.commands.models import LLAMA
from topk_np.commands.options import Commands, Parser, at_least, rate
from topk_np.layers.attention_kinds import KINDS
from topk_np.tasks.names import TASKS


def train(commands: Commands) -> None:
    """Train a transformer from scratch."""
    parser = commands.add_parser(
        "train",
        help="train a transformer from scratch, dense, top-k or with random features",
        description="Train a classifier with hand-written backward passes: a bar, a log with a "
        "line of JSON for each step, checkpoints, and at the end the accuracy beside that of "
        "guesses that need no model, also with other k at test time. Ctrl-C leaves a checkpoint.",
    )
    parser.add_argument("task", choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument(
        "--attention", choices=KINDS, default="dense", help="how it attends (dense)"
    )
    for name, least, number, text in (
        ("--k", 1, 16, "keys kept for each query in top-k attention (16)"),
        ("--ffn-k", 1, None, "feed-forward units kept for each token (all)"),
        ("--features", 1, 64, "random features of a head in performer and rfa (64)"),
        ("--steps", 1, 4000, "steps in all, with those before --resume (4000)"),
        ("--seed", 0, 0, "what parameters and batches are drawn from (0)"),
        ("--batch", 1, 32, "examples of a step (32)"),
        ("--layers", 1, 2, "encoder blocks (2)"),
        ("--width", 1, 64, "features of a token (64)"),
        ("--heads", 1, 4, "heads of attention (4)"),
        ("--hidden", 1, 256, "feed-forward units (256)"),
        ("--evaluate-every", 1, 500, "steps between looks at the validation split (500)"),
    ):
        parser.add_argument(name, type=at_least(least), default=number, metavar="N", help=text)
    parser.add_argument(
        "--learning-rate", type=rate, default=1e-3, metavar="R", help="of AdamW, once warm (0.001)"
    )
    parser.add_argument(
        "--test-k",
        type=at_least(1),
        nargs="+",
        metavar="K",
        help="keys kept at test time, beside how it was trained (4 8 16 ... below the length)",
    )
    _shared(parser, "topk_np_train")
    parser.set_defaults(run=_train, name="train")


def _train(**options: Any) -> None:
    from topk_np.runs import train

    train.run(**options)


def finetune(commands: Commands) -> None:
    """Fine-tune a pretrained language model."""
    parser = commands.add_parser(
        "finetune",
        help="fine-tune a pretrained language model, dense or with top-k",
        description="Train a model further on texts, all weights, chosen ones, or low-rank updates "
        "of them, with hand-written backward passes: a bar, a log with a line of JSON for each "
        "step, checkpoints, and perplexity on held-out text before and after. Ctrl-C leaves a "
        "checkpoint.",
    )
    parser.add_argument("--model", default="smollm2", metavar="NAME|PATH", help=LLAMA)
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="what to train on, a part of which is held out (Python's own documentation)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="train weights whose paths fit, such as 'layers.*.ffn.*' (all; with --lora all "
        "matrices of the blocks)",
    )
    for name, least, number, text in (
        ("--attention-k", 1, None, "keys kept for each query (all)"),
        ("--ffn-k", 1, None, "feed-forward units kept for each token (all)"),
        ("--lora", 1, None, "learn updates of this rank instead of the weights themselves"),
        ("--steps", 1, 30, "steps in all, with those before --resume (30)"),
        ("--batch", 1, 2, "sequences of a step (2)"),
        ("--length", 2, 512, "tokens of a sequence (512)"),
        ("--seed", 0, 0, "what updates and batches are drawn from (0)"),
        ("--evaluate-every", 1, 100, "steps between looks at the held-out text (100)"),
    ):
        parser.add_argument(name, type=at_least(least), default=number, metavar="N", help=text)
    parser.add_argument(
        "--learning-rate",
        type=rate,
        metavar="R",
        help="of AdamW, once warm (0.00003; with --lora 0.001)",
    )
    _shared(parser, "topk_np_finetune")
    parser.set_defaults(run=_finetune, name="finetune")


def _finetune(**options: Any) -> None:
    from topk_np.runs import finetune

    finetune.run(**options)


def _shared(parser: Parser, folder: str) -> None:
    """Add the options that both have in the same words."""
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="make activations again in the backward pass instead of keeping them",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"where all goes (a new one in {folder})"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint there, bit for bit"
    )
