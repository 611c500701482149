"""
Write docs/options.md: every option, what it is for, and where it works.

The text is that of the docstrings of `topk_attention` and `topk_ffn`; where an option works is
found out by calling each function with it, forward and backward, on each engine:
`python docs/tables/options.py`.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import topk_np
from topk_np.options.check import AttentionOptions

PAGE = Path(__file__).parents[1] / "options.md"
LENGTH, WIDTH = 6, 4
ENGINES = {"NumPy": "", "portable": "portable"}
Call = Callable[[np.ndarray, dict[str, Any]], None]

INTRODUCTION = """# The options

<!-- Made by docs/tables/options.py from the code. -->

All combine, in any number, and have one name everywhere. Each was called forward and backward on
the engines named; on CuPy the same tests pass, run on its CPU build
([running on a GPU](howto/gpu.md)).

## Attention

`topk_attention`, `dense_attention` and `multihead_attention` take the same, but for the rule by
which keys are kept, which dense attention has no need of.

A score is made in this order: the product of query and key, times `scale`; `softcap`; plus `bias`;
then all that masks. Then keys are chosen, the softmax is taken, and `dropout` is the last.

"""
BETWEEN = """
## Feed-forward layers

A score is the product of token and key, plus `key_bias`, and goes through the `activation`. With a
`gate` it is the gate's score that does, and the result is multiplied by the other one. Units are
chosen by what `select` says, and `value_bias` is the last.

"""


def dense_attention(x: np.ndarray, options: dict[str, Any]) -> None:
    out, residuals = topk_np.dense_attention_fwd(x, x, x, **options)
    topk_np.dense_attention_bwd(residuals, out)


def topk_attention(x: np.ndarray, options: dict[str, Any]) -> None:
    rule = {} if options.keys() & {"k", "p"} else {"k": 2}
    out, residuals = topk_np.topk_attention_fwd(x, x, x, **options, **rule)
    topk_np.topk_attention_bwd(residuals, out)


def multihead_attention(x: np.ndarray, options: dict[str, Any]) -> None:
    weights = topk_np.MultiheadWeights(*[np.eye(WIDTH)] * 4)
    rule = {} if options.keys() & {"k", "p"} else {"k": 2}
    out, residuals = topk_np.multihead_attention_fwd(x, weights, heads=2, **options, **rule)
    topk_np.multihead_attention_bwd(residuals, out)


def dense_ffn(x: np.ndarray, options: dict[str, Any]) -> None:
    out, residuals = topk_np.dense_ffn_fwd(x, x, x, **options)
    topk_np.dense_ffn_bwd(residuals, out)


def topk_ffn(x: np.ndarray, options: dict[str, Any]) -> None:
    out, residuals = topk_np.topk_ffn_fwd(x, x, x, **{"k": 2, **options})
    topk_np.topk_ffn_bwd(residuals, out)


class Table(NamedTuple):
    """The options of a kind of function: whose docstring has them, who is called with which."""

    documented: Callable[..., Any]
    data: tuple[str, ...]
    calls: dict[str, Call]
    examples: dict[str, Any]


HOW = {"chunk_size": 2, "memory_budget": 2**20, "workers": 2}
TABLES = (
    Table(
        topk_np.topk_attention,
        ("query", "key", "value"),
        {"dense": dense_attention, "top-k": topk_attention, "multi-head": multihead_attention},
        {
            "k": 2,
            "p": 0.5,
            "max_k": 3,
            "return_lse": True,
            "mask": np.tri(LENGTH, dtype=bool),
            "is_causal": True,
            "query_offset": 2,
            "window": (2, 0),
            "query_lengths": 4,
            "key_lengths": 4,
            "bias": np.ones((LENGTH, LENGTH)),
            "scale": 0.5,
            "softcap": 2.0,
            "dropout": (0.5, 0),
            "always_keep": (1, 1),
            **HOW,
        },
    ),
    Table(
        topk_np.topk_ffn,
        ("x", "keys", "values"),
        {"dense": dense_ffn, "top-k": topk_ffn},
        {
            "k": 2,
            "activation": "silu",
            "key_bias": np.ones(LENGTH),
            "value_bias": np.ones(WIDTH),
            "gate": np.ones((LENGTH, WIDTH)),
            "select": "activation",
            **HOW,
        },
    ),
)
GOES_WITH = {"p": {"max_k": 3}, "max_k": {"p": 0.5}, "query_offset": {"is_causal": True}}


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """The text of the page."""
    return INTRODUCTION + BETWEEN.join(map(written, TABLES))


def written(table: Table) -> str:
    """A table, with a line for each option."""
    rows = [["option", "form", "what it does", *table.calls, "engines"]]
    rows.append(["---"] * len(rows[0]))
    for name in inspect.signature(table.documented).parameters:
        if name not in table.data:
            rows.append([f"`{name}`", *described(name, table.documented), *tried(name, table)])
    return "```{rst-class} options\n```\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def tried(name: str, table: Table) -> list[str]:
    """Which functions take an option, and the engines on which those do."""
    works = {
        engine: [called(call, engine, name, table.examples[name]) for call in table.calls.values()]
        for engine in ENGINES
    }
    everywhere = next(iter(works.values()))
    engines = [engine for engine, same in works.items() if same == everywhere]
    return ["yes" if works else "no" for works in everywhere] + [", ".join(engines)]


def described(name: str, function: Callable[..., Any]) -> tuple[str, str]:
    """The type of an option in a docstring, and the first sentence on it."""
    text = inspect.getdoc(function) or ""
    found = re.search(rf"^(?:\w+, )*{name}(?:, \w+)* : (.*)\n((?:    .*\n)+)", text, re.MULTILINE)
    assert found, f"{name} is not documented"
    kind = found[1].removesuffix(", optional").replace("concurrent.futures.", "")
    sentence = re.split(r"(?<=\.) ", " ".join(found[2].split()))[0]
    return kind, sentence.replace("``", "`")


def called(call: Call, engine: str, name: str, example: Any) -> bool:
    """Whether a function takes an option on an engine."""
    x = np.random.default_rng(0).standard_normal((LENGTH, WIDTH))
    with engine_of(ENGINES[engine]):
        try:
            call(x, {name: example, **GOES_WITH.get(name, {})})
        except TypeError:  # not an option of this function
            return False
    return True


@contextmanager
def engine_of(setting: str) -> Iterator[None]:
    """Run on an engine that TOPK_NP_KERNELS names."""
    before = os.environ.get("TOPK_NP_KERNELS")
    os.environ["TOPK_NP_KERNELS"] = setting
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOPK_NP_KERNELS"]
        else:
            os.environ["TOPK_NP_KERNELS"] = before


assert AttentionOptions.__annotations__.keys() < TABLES[0].examples.keys()
if __name__ == "__main__":
    main()
