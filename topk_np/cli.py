"""The command line: ``python -m topk_np COMMAND``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from topk_np import __version__
from topk_np._process import UserError
from topk_np.commands import bench, checks, models, qa, runs, studies
from topk_np.commands.options import Parser

# In the order of --help.
COMMANDS = (
    models.fetch,
    studies.demo,
    models.generate,
    studies.experiment,
    qa.qa,
    runs.train,
    runs.finetune,
    bench.bench,
    checks.selftest,
    checks.check,
)

EXTRAS = {
    "gguf": "demo",
    "hypothesis": "testing",
    "matplotlib": "demo",
    "safetensors": "train",
    "sentencepiece": "t5",
    "tokenizers": "demo",
    "tqdm": "demo",
}
"""The extra of this package that brings a package."""


def main(arguments: Sequence[str] | None = None, /) -> int:
    """
    Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit code: 0; 1 if the self-test or a check finds a fault, or the reader of the output
        closes it; 2 for an error of use; 130 when interrupted.
    """
    options = vars(_parser().parse_args(arguments))
    name: str = options.pop("name")
    command: Callable[..., int | None] = options.pop("run")
    try:
        return command(**options) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        return 1
    except UserError as error:
        return _fail(name, str(error))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = name if name in ("bench", "train") else EXTRAS[error.name]
        return _fail(name, f"the package {error.name} is missing: pip install 'topk_np[{extra}]'")


def _fail(name: str, message: str) -> int:
    print(f"topk_np {name}: error: {message}", file=sys.stderr)
    return 2


def _parser() -> Parser:
    parser = Parser(prog="topk_np", description="Exact top-k attention in NumPy.")
    parser.add_argument("--version", action="version", version=f"topk_np {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser
