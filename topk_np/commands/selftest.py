"""A check of this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from topk_np.commands.options import CommandError, Commands, at_least, read


def add(commands: Commands) -> None:
    """Add the command and its options."""
    selftest = commands.add_parser(
        "selftest",
        help="check this machine's GPU, or NumPy, against NumPy in double precision",
        description="Solve drawn problems on a device, compare with NumPy in double precision, "
        "time the kernels, and say whether all is well. Exit code 1 if it is not.",
    )
    selftest.add_argument(
        "--backend", choices=("cupy", "numpy"), default="cupy", help="what to check (cupy)"
    )
    selftest.add_argument("--cases", type=at_least(1), default=30, help="of each check (30)")
    for name, default, text in (
        ("--seed", 0, "what the cases are drawn from (0)"),
        ("--repeats", 5, "rounds to be timed (5); 0 times nothing"),
    ):
        selftest.add_argument(name, type=at_least(0), default=default, help=text)
    selftest.add_argument(
        "--out",
        type=Path,
        default=Path("topk_np_selftest.json"),
        metavar="FILE",
        help="where to save what was found (topk_np_selftest.json)",
    )
    selftest.set_defaults(run=run, name="selftest")


def run(options: argparse.Namespace) -> int:
    """Run the command with the options that were read."""
    from topk_np import selftest

    try:
        passed = selftest.run(**read(options))
    except selftest.DeviceError as error:
        raise CommandError(str(error)) from error
    return 0 if passed else 1
