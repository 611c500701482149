"""Commands that study trained models: `demo` and `experiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topk_np.commands.options import Commands, at_least
from topk_np.studies.runner import EXPERIMENTS


def demo(commands: Commands) -> None:
    """Compare a pretrained language model, dense and with top-k attention."""
    parser = commands.add_parser(
        "demo",
        help="a pretrained language model, dense and with top-k attention",
        description="Run SmolLM2-135M on real text, dense and with top-k attention: a table of "
        "quality, memory and time, a pass key to be found, and a plot.",
    )
    parser.add_argument(
        "--k",
        dest="ks",
        type=at_least(1),
        nargs="+",
        default=[16, 32, 64, 128],
        metavar="K",
        help="keys kept for each query (16 32 64 128); 64 is always among them",
    )
    parser.add_argument(
        "--tokens", type=at_least(1), default=1024, help="length of the text (1024)"
    )
    for name, default, text in (
        ("--text", None, "a text to read instead of Python's documentation"),
        ("--weights", None, "a GGUF file of a Llama model to run instead of SmolLM2"),
        ("--plot", Path("topk_np_demo.png"), "where to save the plot (topk_np_demo.png)"),
    ):
        parser.add_argument(name, type=Path, default=default, metavar="FILE", help=text)
    parser.set_defaults(run=_demo, name="demo")


def _demo(**options: Any) -> None:
    from topk_np.studies import demo

    demo.run(**options)


def experiment(commands: Commands) -> None:
    """Measure the effect of top-k on trained models."""
    parser = commands.add_parser(
        "experiment",
        help="measure what top-k does to trained models",
        description="Measure with one setting after the other, print tables and save plots. Each "
        "point is in a JSON file as soon as it is known; what is there is not measured again, so "
        "that a run that was stopped goes on where it was.",
    )
    parser.add_argument(
        "experiment",
        choices=EXPERIMENTS,
        metavar="NAME",
        help="; ".join(f"{name}: {what}" for name, what in EXPERIMENTS.items()),
    )
    parser.add_argument(
        "--model", metavar="NAME|PATH", help="a model to measure instead of the packaged one"
    )
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="the settings that have them in their names"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing, show what is there")
    for name, folder, text in (
        ("--out", Path("topk_np_experiments"), "where all goes (topk_np_experiments)"),
        ("--plots", None, "where the plots go (where all goes)"),
    ):
        parser.add_argument(name, type=Path, default=folder, metavar="FOLDER", help=text)
    parser.set_defaults(run=_experiment, name="experiment")


def _experiment(experiment: str, **options: Any) -> None:
    from topk_np import studies

    studies.run(experiment, **options)
