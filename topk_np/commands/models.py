"""A pretrained language model writes on."""

from __future__ import annotations

import argparse
from pathlib import Path

from topk_np.commands.options import CommandError, Commands, at_least, read


def add(commands: Commands) -> None:
    """Add the command and its options."""
    generate = commands.add_parser(
        "generate",
        help="a pretrained language model writes on, dense or with top-k",
        description="Go on with a text, or answer a message with --chat; greedily unless asked "
        "otherwise. The text goes to stdout as it comes, its speed to stderr.",
    )
    generate.add_argument(
        "--model",
        default="smollm2",
        metavar="NAME|PATH",
        help="smollm2, which is downloaded once, or a Llama model: a GGUF file, or a folder with "
        "config.json, safetensors and tokenizer.json (smollm2)",
    )
    generate.add_argument(
        "--adapter",
        type=Path,
        metavar="FILE",
        help="what finetune trained of this model, to be put in its place",
    )
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="what to go on with")
    for name, default, text in (
        ("--attention-k", None, "keys kept for each query; all by default"),
        ("--ffn-k", None, "feed-forward units kept for each token; all by default"),
        ("--max-tokens", 128, "tokens to generate at most (128)"),
    ):
        generate.add_argument(name, type=at_least(1), default=default, metavar="N", help=text)
    for name, fraction, letter, text in (
        ("--temperature", 0.0, "T", "above 0: draw tokens instead of taking the best (0)"),
        ("--top-p", 1.0, "P", "draw from the best tokens that together have this probability (1)"),
    ):
        generate.add_argument(name, type=float, default=fraction, metavar=letter, help=text)
    generate.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="what is drawn from (0)"
    )
    generate.add_argument(
        "--chat", action="store_true", help="take the prompt as a message and answer it"
    )
    generate.set_defaults(run=run, name="generate")


def run(options: argparse.Namespace) -> None:
    """Run the command with the options that were read."""
    from topk_np.models import command
    from topk_np.models.fetch import FetchError

    try:
        command.run(**read(options))
    except (FetchError, command.GenerateError) as error:
        raise CommandError(str(error)) from error
