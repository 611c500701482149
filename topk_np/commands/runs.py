"""Train a transformer from scratch."""

from __future__ import annotations

import argparse
from pathlib import Path

from topk_np.commands.options import CommandError, Commands, at_least, rate, read
from topk_np.layers.ways import WAYS
from topk_np.tasks.names import TASKS


def add(commands: Commands) -> None:
    """Add the command and its options."""
    train = commands.add_parser(
        "train",
        help="train a transformer from scratch, dense, top-k or with random features",
        description="Train a classifier with hand-written backward passes: a bar, a log with a "
        "line of JSON for each step, checkpoints, and at the end the accuracy beside that of "
        "guesses that need no model, also with other k at test time. Ctrl-C leaves a checkpoint.",
    )
    train.add_argument("task", choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    train.add_argument("--attention", choices=WAYS, default="dense", help="how it attends (dense)")
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
        train.add_argument(name, type=at_least(least), default=number, metavar="N", help=text)
    train.add_argument(
        "--learning-rate", type=rate, default=1e-3, metavar="R", help="of AdamW, once warm (0.001)"
    )
    train.add_argument(
        "--test-k",
        type=at_least(1),
        nargs="+",
        metavar="K",
        help="keys kept at test time, beside how it was trained (4 8 16 ... below the length)",
    )
    train.add_argument(
        "--recompute",
        action="store_true",
        help="make activations again in the backward pass instead of keeping them",
    )
    train.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where all goes (a new one in topk_np_train)"
    )
    train.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint there, bit for bit"
    )
    train.set_defaults(run=run, name="train")


def run(options: argparse.Namespace) -> None:
    """Run the command with the options that were read."""
    from topk_np.runs import train
    from topk_np.runs.settings import TrainError
    from topk_np.tasks import MissingDataError
    from topk_np.training import ParamsError

    try:
        train.run(**read(options))
    except (TrainError, ParamsError, MissingDataError) as error:
        raise CommandError(str(error)) from error
