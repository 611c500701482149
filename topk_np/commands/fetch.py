"""Download pretrained weights."""

from __future__ import annotations

import argparse

from topk_np.commands.options import CommandError, Commands


def add(commands: Commands) -> None:
    """Add the command and its options."""
    fetch = commands.add_parser("fetch", help="download pretrained weights into the cache folder")
    fetch.add_argument("weights", help="their name: smollm2 or minilm")
    fetch.set_defaults(run=run, name="fetch")


def run(options: argparse.Namespace) -> None:
    """Run the command with the options that were read."""
    from topk_np.fetch import FetchError, fetch

    try:
        print(fetch(options.weights))
    except (FetchError, ValueError) as error:
        raise CommandError(str(error)) from error
