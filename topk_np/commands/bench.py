"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topk_np.commands.options import Commands, at_least


def bench(commands: Commands) -> None:
    """Measure time and memory against NumPy and PyTorch."""
    parser = commands.add_parser(
        "bench",
        help="time and memory against NumPy and PyTorch",
        description="Measure topk_np and other ways to compute the same: tables, JSON files, "
        "plots. What is not installed, or would take too much, is left out with a line saying so.",
    )
    parser.add_argument(
        "--what",
        choices=("attention", "ffn", "figures", "all", "model", "layers"),
        default="all",
        help="attention by length, feed-forward layers, the figures to reach, or all of these "
        "(all); or SmolLM2, which is downloaded once, against transformers; or the memory of 12 "
        "layers, of which later runs of the command make what is missing",
    )
    parser.add_argument(
        "--lengths",
        type=at_least(1),
        nargs="+",
        metavar="L",
        help="queries and keys of attention (512 and its doubles up to 65536; of layers to 8192)",
    )
    parser.add_argument("--repeats", type=at_least(1), default=5, help="rounds to be timed (5)")
    parser.add_argument("--peers", nargs="+", metavar="PEER", help="some of the peers, by name")
    for name, text in (
        ("--time-limit", "seconds that one run of a peer may take (60; of layers 7200)"),
        ("--memory-limit", "MiB that it may take (half of the machine's)"),
    ):
        parser.add_argument(name, type=at_least(1), help=text)
    for name, folder, text in (
        ("--out", Path("topk_np_bench"), "where the JSON files go (topk_np_bench)"),
        ("--plots", None, "where the plots go (where the JSON files go)"),
    ):
        parser.add_argument(name, type=Path, default=folder, metavar="FOLDER", help=text)
    parser.set_defaults(run=_bench, name="bench")


def _bench(**options: Any) -> None:
    from topk_np import bench

    bench.run(**options)
