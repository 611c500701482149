"""What top-k does to trained models."""

from __future__ import annotations

import argparse
from pathlib import Path

from topk_np.commands.options import CommandError, Commands, read
from topk_np.studies.names import EXPERIMENTS


def add(commands: Commands) -> None:
    """Add the command and its options."""
    experiment = commands.add_parser(
        "experiment",
        help="measure what top-k does to trained models",
        description="Measure with one setting after the other, print tables and save plots. Each "
        "point is in a JSON file as soon as it is known; what is there is not measured again, so "
        "that a run that was stopped goes on where it was.",
    )
    experiment.add_argument(
        "experiment",
        choices=EXPERIMENTS,
        metavar="NAME",
        help="; ".join(f"{name}: {what}" for name, what in EXPERIMENTS.items()),
    )
    experiment.add_argument(
        "--model", metavar="NAME|PATH", help="a model to measure instead of the packaged one"
    )
    experiment.add_argument(
        "--only", default="", metavar="WORDS", help="the settings that have them in their names"
    )
    experiment.add_argument(
        "--show", action="store_true", help="measure nothing, show what is there"
    )
    for name, folder, text in (
        ("--out", Path("topk_np_experiments"), "where all goes (topk_np_experiments)"),
        ("--plots", None, "where the plots go (where all goes)"),
    ):
        experiment.add_argument(name, type=Path, default=folder, metavar="FOLDER", help=text)
    experiment.set_defaults(run=run, name="experiment")


def run(options: argparse.Namespace) -> None:
    """Run the command with the options that were read."""
    from topk_np import studies
    from topk_np._process import UserError
    from topk_np.models.fetch import FetchError
    from topk_np.models.named import ModelError
    from topk_np.tasks import MissingDataError

    chosen = read(options)
    name = chosen.pop("experiment")
    try:
        studies.run(name, **chosen)
    except (
        FetchError,
        ModelError,
        MissingDataError,
        studies.ExperimentError,
        UserError,
    ) as error:
        raise CommandError(str(error)) from error
