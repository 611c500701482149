"""Commands on pretrained models: `fetch` and `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topk_np._process import UserError
from topk_np.commands.options import Commands, at_least

LLAMA = (
    "smollm2, which is downloaded once, or a Llama model: a GGUF file, or a folder with "
    "config.json, safetensors and tokenizer.json (smollm2)"
)


def fetch(commands: Commands) -> None:
    """Download pretrained weights."""
    parser = commands.add_parser("fetch", help="download pretrained weights into the cache folder")
    parser.add_argument("weights", help="their name: smollm2 or minilm")
    parser.set_defaults(run=_fetch, name="fetch")


def _fetch(weights: str) -> None:
    from topk_np.fetch import fetch

    try:
        print(fetch(weights))
    except ValueError as error:  # about the name
        raise UserError(str(error)) from error


def generate(commands: Commands) -> None:
    """Let a pretrained language model continue a text."""
    parser = commands.add_parser(
        "generate",
        help="a pretrained language model writes on, dense or with top-k",
        description="Go on with a text, or answer a message with --chat; greedily unless asked "
        "otherwise. The text goes to stdout as it comes, its speed to stderr.",
    )
    parser.add_argument("--model", default="smollm2", metavar="NAME|PATH", help=LLAMA)
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="FILE",
        help="what finetune trained of this model, to be put in its place",
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to go on with")
    for name, default, text in (
        ("--attention-k", None, "keys kept for each query; all by default"),
        ("--ffn-k", None, "feed-forward units kept for each token; all by default"),
        ("--max-tokens", 128, "tokens to generate at most (128)"),
    ):
        parser.add_argument(name, type=at_least(1), default=default, metavar="N", help=text)
    for name, fraction, letter, text in (
        ("--temperature", 0.0, "T", "above 0: draw tokens instead of taking the best (0)"),
        ("--top-p", 1.0, "P", "draw from the best tokens that together have this probability (1)"),
    ):
        parser.add_argument(name, type=float, default=fraction, metavar=letter, help=text)
    parser.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="what is drawn from (0)"
    )
    parser.add_argument(
        "--chat", action="store_true", help="take the prompt as a message and answer it"
    )
    parser.set_defaults(run=_generate, name="generate")


def _generate(**options: Any) -> None:
    from topk_np.models import command

    command.run(**options)
