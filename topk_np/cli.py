"""The command line: ``python -m topk_np COMMAND``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from topk_np import __version__

EXTRAS = {
    "gguf": "demo",
    "hypothesis": "testing",
    "matplotlib": "demo",
    "tokenizers": "demo",
    "tqdm": "demo",
}


class CommandError(Exception):
    """What the user should be told in one line; the exit code is 2."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse would put before it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None, /) -> int:
    """
    Run a command and return the exit code.

    0, 1 if the self-test or a check finds a fault or nobody reads what is printed, 2 for an error
    of use, 130 when interrupted.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.
    """
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int | None] = options.run
    try:
        return command(options) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads our output has had enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        return 1
    except CommandError as error:
        return _fail(options.name, str(error))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = "bench" if options.name == "bench" else EXTRAS[error.name]
        return _fail(
            options.name,
            f"the package {error.name} is missing: pip install 'topk_np[{extra}]'",
        )


def _fail(name: str, message: str) -> int:
    print(f"topk_np {name}: error: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="topk_np", description="Exact top-k attention in NumPy.")
    parser.add_argument("--version", action="version", version=f"topk_np {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="download pretrained weights into the cache folder")
    fetch.add_argument("weights", help="their name: smollm2")
    fetch.set_defaults(run=_fetch, name="fetch")

    demo = commands.add_parser(
        "demo",
        help="a pretrained language model, dense and with top-k attention",
        description="Run SmolLM2-135M on real text, dense and with top-k attention: a table of "
        "quality, memory and time, a pass key to be found, and a plot.",
    )
    demo.add_argument(
        "--k",
        dest="ks",
        type=_at_least(1),
        nargs="+",
        default=[16, 32, 64, 128],
        metavar="K",
        help="keys kept for each query (16 32 64 128); 64 is always among them",
    )
    demo.add_argument("--tokens", type=_at_least(1), default=1024, help="length of the text (1024)")
    for name, default, text in (
        ("--text", None, "a text to read instead of Python's documentation"),
        ("--weights", None, "a GGUF file of a Llama model to run instead of SmolLM2"),
        ("--plot", Path("topk_np_demo.png"), "where to save the plot (topk_np_demo.png)"),
    ):
        demo.add_argument(name, type=Path, default=default, metavar="FILE", help=text)
    demo.set_defaults(run=_demo, name="demo")
    _add_generate(commands)
    _add_bench(commands)
    _add_selftest(commands)
    _add_check(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction[_Parser]) -> None:
    generate = commands.add_parser(
        "generate",
        help="a pretrained language model writes on, dense or with top-k",
        description="Go on with a text, or answer a message with --chat; greedily unless asked "
        "otherwise. The text goes to stdout as it comes, its speed to stderr.",
    )
    generate.add_argument(
        "--model",
        default="smollm2",
        metavar="NAME|FILE",
        help="smollm2, which is downloaded once, or a GGUF file of a Llama model (smollm2)",
    )
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="what to go on with")
    for name, default, text in (
        ("--attention-k", None, "keys kept for each query; all by default"),
        ("--ffn-k", None, "feed-forward units kept for each token; all by default"),
        ("--max-tokens", 128, "tokens to generate at most (128)"),
    ):
        generate.add_argument(name, type=_at_least(1), default=default, metavar="N", help=text)
    for name, fraction, letter, text in (
        ("--temperature", 0.0, "T", "above 0: draw tokens instead of taking the best (0)"),
        ("--top-p", 1.0, "P", "draw from the best tokens that together have this probability (1)"),
    ):
        generate.add_argument(name, type=float, default=fraction, metavar=letter, help=text)
    generate.add_argument(
        "--seed", type=_at_least(0), default=0, metavar="N", help="what is drawn from (0)"
    )
    generate.add_argument(
        "--chat", action="store_true", help="take the prompt as a message and answer it"
    )
    generate.set_defaults(run=_generate, name="generate")


def _add_bench(commands: argparse._SubParsersAction[_Parser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="time and memory against NumPy and PyTorch",
        description="Measure topk_np and other ways to compute the same: tables, JSON files, "
        "plots. What is not installed, or would take too much, is left out with a line saying so.",
    )
    bench.add_argument(
        "--what",
        choices=("attention", "ffn", "figures", "all"),
        default="all",
        help="attention by length, feed-forward layers, the figures to reach, or all (all)",
    )
    bench.add_argument(
        "--lengths",
        type=_at_least(1),
        nargs="+",
        default=[2**i for i in range(9, 17)],
        metavar="L",
        help="queries and keys of attention (512 and its doubles up to 65536)",
    )
    bench.add_argument("--repeats", type=_at_least(1), default=5, help="rounds to be timed (5)")
    bench.add_argument("--peers", nargs="+", metavar="PEER", help="some of the peers, by name")
    for name, default, text in (
        ("--time-limit", 60, "seconds that one run of a peer may take (60)"),
        ("--memory-limit", None, "MiB that it may take (half of the machine's)"),
    ):
        bench.add_argument(name, type=_at_least(1), default=default, help=text)
    for name, folder, text in (
        ("--out", Path("topk_np_bench"), "where the JSON files go (topk_np_bench)"),
        ("--plots", None, "where the plots go (where the JSON files go)"),
    ):
        bench.add_argument(name, type=Path, default=folder, metavar="FOLDER", help=text)
    bench.set_defaults(run=_bench, name="bench")


def _add_selftest(commands: argparse._SubParsersAction[_Parser]) -> None:
    selftest = commands.add_parser(
        "selftest",
        help="check this machine's GPU, or NumPy, against NumPy in double precision",
        description="Solve drawn problems on a device, compare with NumPy in double precision, "
        "time the kernels, and say whether all is well. Exit code 1 if it is not.",
    )
    selftest.add_argument(
        "--backend", choices=("cupy", "numpy"), default="cupy", help="what to check (cupy)"
    )
    selftest.add_argument("--cases", type=_at_least(1), default=30, help="of each check (30)")
    for name, default, text in (
        ("--seed", 0, "what the cases are drawn from (0)"),
        ("--repeats", 5, "rounds to be timed (5); 0 times nothing"),
    ):
        selftest.add_argument(name, type=_at_least(0), default=default, help=text)
    selftest.add_argument(
        "--out",
        type=Path,
        default=Path("topk_np_selftest.json"),
        metavar="FILE",
        help="where to save what was found (topk_np_selftest.json)",
    )
    selftest.set_defaults(run=_selftest, name="selftest")


def _add_check(commands: argparse._SubParsersAction[_Parser]) -> None:
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
        help="options to try beside those that the function's signature names",
    )
    check.add_argument("--only", nargs="+", metavar="PROPERTY", help="some of the properties")
    for name, choices, text in (
        ("--library", ("numpy", "cupy", "jax", "torch"), "whose arrays it takes (numpy)"),
        ("--dtype", ("float64", "float32", "float16"), "of the arrays (float64)"),
    ):
        check.add_argument(name, choices=choices, default=choices[0], help=text)
    for name, least, number, text in (
        ("--max-length", 2, 8, "the most queries and keys of a drawn problem (8)"),
        ("--leading-axes", 0, None, "axes before those of rows and columns (none to two)"),
        ("--examples", 1, 50, "problems drawn for each property (50)"),
        ("--seed", 0, 0, "what they are drawn from (0)"),
    ):
        check.add_argument(name, type=_at_least(least), default=number, metavar="N", help=text)
    check.set_defaults(run=_check, name="check")


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        return number

    return parse


def _read(options: argparse.Namespace) -> dict[str, Any]:
    """What the parser read, by the names of the command's own arguments."""
    return {name: value for name, value in vars(options).items() if name not in ("name", "run")}


def _fetch(options: argparse.Namespace) -> None:
    from topk_np.models.fetch import FetchError, fetch

    try:
        print(fetch(options.weights))
    except (FetchError, ValueError) as error:
        raise CommandError(str(error)) from error


def _demo(options: argparse.Namespace) -> None:
    from topk_np import demo
    from topk_np.models.fetch import FetchError

    try:
        demo.run(**_read(options))
    except (FetchError, demo.DemoError) as error:
        raise CommandError(str(error)) from error


def _generate(options: argparse.Namespace) -> None:
    from topk_np.models import command
    from topk_np.models.fetch import FetchError

    try:
        command.run(**_read(options))
    except (FetchError, command.GenerateError) as error:
        raise CommandError(str(error)) from error


def _bench(options: argparse.Namespace) -> None:
    from topk_np import bench

    try:
        bench.run(**_read(options))
    except bench.BenchError as error:
        raise CommandError(str(error)) from error


def _selftest(options: argparse.Namespace) -> int:
    from topk_np import selftest

    try:
        passed = selftest.run(**_read(options))
    except selftest.DeviceError as error:
        raise CommandError(str(error)) from error
    return 0 if passed else 1


def _check(options: argparse.Namespace) -> int:
    from topk_np.testing import CannotCheck
    from topk_np.testing.command import run

    try:
        passed = run(**_read(options))
    except CannotCheck as error:
        raise CommandError(str(error)) from error
    return 0 if passed else 1
