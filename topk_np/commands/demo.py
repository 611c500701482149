"""The main job on a real model."""

from __future__ import annotations

import argparse
from pathlib import Path

from topk_np.commands.options import CommandError, Commands, at_least, read


def add(commands: Commands) -> None:
    """Add the command and its options."""
    demo = commands.add_parser(
        "demo",
        help="a pretrained language model, dense and with top-k attention",
        description="Run SmolLM2-135M on real text, dense and with top-k attention: a table of "
        "quality, memory and time, a pass key to be found, and a plot.",
    )
    demo.add_argument(
        "--k",
        dest="ks",
        type=at_least(1),
        nargs="+",
        default=[16, 32, 64, 128],
        metavar="K",
        help="keys kept for each query (16 32 64 128); 64 is always among them",
    )
    demo.add_argument("--tokens", type=at_least(1), default=1024, help="length of the text (1024)")
    for name, default, text in (
        ("--text", None, "a text to read instead of Python's documentation"),
        ("--weights", None, "a GGUF file of a Llama model to run instead of SmolLM2"),
        ("--plot", Path("topk_np_demo.png"), "where to save the plot (topk_np_demo.png)"),
    ):
        demo.add_argument(name, type=Path, default=default, metavar="FILE", help=text)
    demo.set_defaults(run=run, name="demo")


def run(options: argparse.Namespace) -> None:
    """Run the command with the options that were read."""
    from topk_np.models.fetch import FetchError
    from topk_np.studies import demo

    try:
        demo.run(**read(options))
    except (FetchError, demo.DemoError) as error:
        raise CommandError(str(error)) from error
