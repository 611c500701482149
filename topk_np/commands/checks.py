"""Commands that check: `selftest` this machine, `check` anyone's implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topk_np._process import UserError
from topk_np.commands.options import Commands, at_least


def selftest(commands: Commands) -> None:
    """Check this machine."""
    parser = commands.add_parser(
        "selftest",
        help="check this machine's GPU, or NumPy, against NumPy in double precision",
        description="Solve drawn problems on a device, compare with NumPy in double precision, "
        "time the kernels, and say whether all is well. Exit code 1 if it is not.",
    )
    parser.add_argument(
        "--backend", choices=("cupy", "numpy"), default="cupy", help="what to check (cupy)"
    )
    parser.add_argument("--cases", type=at_least(1), default=30, help="of each check (30)")
    for name, default, text in (
        ("--seed", 0, "what the cases are drawn from (0)"),
        ("--repeats", 5, "rounds to be timed (5); 0 times nothing"),
    ):
        parser.add_argument(name, type=at_least(0), default=default, help=text)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("topk_np_selftest.json"),
        metavar="FILE",
        help="where to save what was found (topk_np_selftest.json)",
    )
    parser.set_defaults(run=_selftest, name="selftest")


def _selftest(**options: Any) -> int:
    from topk_np import selftest

    return 0 if selftest.run(**options) else 1


def check(commands: Commands) -> None:
    """Check an implementation of attention."""
    parser = commands.add_parser(
        "check",
        help="put an implementation of attention, of your own or anyone's, to the test",
        description="Put a function to the test, property by property, and show the smallest "
        "example for which one does not hold. Exit code 0 when no property failed, 1 when one did, "
        "2 when it cannot run.",
    )
    parser.add_argument("target", metavar="MODULE:FUNCTION", help="such as my_module:my_attention")
    parser.add_argument(
        "--kind",
        choices=("attention", "ffn", "topk"),
        default="attention",
        help="what it computes (attention)",
    )
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="OPTION",
        help="options to try beside those that the function's signature names; of masks and biases "
        "also the forms mask_function, bias_function, alibi, t5_bias",
    )
    parser.add_argument("--only", nargs="+", metavar="PROPERTY", help="some of the properties")
    for name, choices, text in (
        ("--library", ("numpy", "cupy", "jax", "torch"), "whose arrays it takes (numpy)"),
        ("--dtype", ("float64", "float32", "float16", "bfloat16"), "of the arrays (float64)"),
    ):
        parser.add_argument(name, choices=choices, default=choices[0], help=text)
    for name, least, number, text in (
        ("--max-length", 2, 8, "the most queries and keys of a drawn problem (8)"),
        ("--leading-axes", 0, None, "axes before those of rows and columns (none to two)"),
        ("--examples", 1, 50, "problems drawn for each property (50)"),
        ("--seed", 0, 0, "what they are drawn from (0)"),
    ):
        parser.add_argument(name, type=at_least(least), default=number, metavar="N", help=text)
    parser.set_defaults(run=_check, name="check")


def _check(**options: Any) -> int:
    from topk_np.testing import CannotCheck
    from topk_np.testing.command import run

    try:
        return 0 if run(**options) else 1
    except CannotCheck as error:
        raise UserError(str(error)) from error
