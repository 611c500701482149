"""The command line: ``python -m topk_np COMMAND``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from topk_np import __version__
from topk_np.commands import (
    bench,
    check,
    demo,
    experiment,
    fetch,
    finetune,
    generate,
    qa,
    selftest,
    train,
)
from topk_np.commands.options import CommandError, Parser

# In the order of --help.
COMMANDS = (fetch, demo, generate, experiment, qa, train, finetune, bench, selftest, check)

EXTRAS = {
    "gguf": "demo",
    "hypothesis": "testing",
    "matplotlib": "demo",
    "safetensors": "train",
    "sentencepiece": "t5",
    "tokenizers": "demo",
    "tqdm": "demo",
}


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
        own = options.name in ("bench", "train")
        extra = options.name if own else EXTRAS[error.name]
        return _fail(
            options.name,
            f"the package {error.name} is missing: pip install 'topk_np[{extra}]'",
        )


def _fail(name: str, message: str) -> int:
    print(f"topk_np {name}: error: {message}", file=sys.stderr)
    return 2


def _parser() -> Parser:
    parser = Parser(prog="topk_np", description="Exact top-k attention in NumPy.")
    parser.add_argument("--version", action="version", version=f"topk_np {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
