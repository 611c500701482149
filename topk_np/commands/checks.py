"""A check of anyone's implementation."""

from __future__ import annotations

import argparse

from topk_np.commands.options import CommandError, Commands, at_least, read


def add(commands: Commands) -> None:
    """Add the command and its options."""
    check = commands.add_parser(
        "check",
        help="put an implementation of attention, of your own or anyone's, to the test",
        description="Put a function to the test, property by property, and show the smallest "
        "example for which one does not hold. Exit code 0 when no property failed, 1 when one did, "
        "2 when it cannot run.",
    )
    check.add_argument("target", metavar="MODULE:FUNCTION", help="such as my_module:my_attention")
    check.add_argument(
        "--kind",
        choices=("attention", "ffn", "topk"),
        default="attention",
        help="what it computes (attention)",
    )
    check.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="OPTION",
        help="options to try beside those that the function's signature names; of masks and biases "
        "also the forms mask_function, bias_function, alibi, t5_bias",
    )
    check.add_argument("--only", nargs="+", metavar="PROPERTY", help="some of the properties")
    for name, choices, text in (
        ("--library", ("numpy", "cupy", "jax", "torch"), "whose arrays it takes (numpy)"),
        ("--dtype", ("float64", "float32", "float16", "bfloat16"), "of the arrays (float64)"),
    ):
        check.add_argument(name, choices=choices, default=choices[0], help=text)
    for name, least, number, text in (
        ("--max-length", 2, 8, "the most queries and keys of a drawn problem (8)"),
        ("--leading-axes", 0, None, "axes before those of rows and columns (none to two)"),
        ("--examples", 1, 50, "problems drawn for each property (50)"),
        ("--seed", 0, 0, "what they are drawn from (0)"),
    ):
        check.add_argument(name, type=at_least(least), default=number, metavar="N", help=text)
    check.set_defaults(run=run, name="check")


def run(options: argparse.Namespace) -> int:
    """Run the command with the options that were read."""
    from topk_np.testing import CannotCheck
    from topk_np.testing.command import run

    try:
        passed = run(**read(options))
    except CannotCheck as error:
        raise CommandError(str(error)) from error
    return 0 if passed else 1
