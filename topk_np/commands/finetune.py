"""Fine-tune a pretrained language model."""

from __future__ import annotations

import argparse
from pathlib import Path

from topk_np.commands.options import CommandError, Commands, at_least, rate, read


def add(commands: Commands) -> None:
    """Add the command and its options."""
    finetune = commands.add_parser(
        "finetune",
        help="fine-tune a pretrained language model, dense or with top-k",
        description="Train a model further on texts, all weights, chosen ones, or low-rank updates "
        "of them, with hand-written backward passes: a bar, a log with a line of JSON for each "
        "step, checkpoints, and perplexity on held-out text before and after. Ctrl-C leaves a "
        "checkpoint.",
    )
    finetune.add_argument(
        "--model",
        default="smollm2",
        metavar="NAME|PATH",
        help="smollm2, which is downloaded once, or a Llama model: a GGUF file, or a folder with "
        "config.json, safetensors and tokenizer.json (smollm2)",
    )
    finetune.add_argument(
        "--text",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="what to train on, a part of which is held out (Python's own documentation)",
    )
    finetune.add_argument(
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
        finetune.add_argument(name, type=at_least(least), default=number, metavar="N", help=text)
    finetune.add_argument(
        "--learning-rate",
        type=rate,
        metavar="R",
        help="of AdamW, once warm (0.00003; with --lora 0.001)",
    )
    finetune.add_argument(
        "--recompute",
        action="store_true",
        help="make activations again in the backward pass instead of keeping them",
    )
    finetune.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where all goes (a new one in topk_np_finetune)"
    )
    finetune.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint there, bit for bit"
    )
    finetune.set_defaults(run=run, name="finetune")


def run(options: argparse.Namespace) -> None:
    """Run the command with the options that were read."""
    from topk_np.models import AdapterError
    from topk_np.models.fetch import FetchError
    from topk_np.models.named import ModelError
    from topk_np.runs import finetune
    from topk_np.runs.settings import TrainError
    from topk_np.training import ParamsError

    try:
        finetune.run(**read(options))
    except (TrainError, ParamsError, AdapterError, FetchError, ModelError) as error:
        raise CommandError(str(error)) from error
