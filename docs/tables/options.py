"""
Write docs/options.md: every option, what it is for, and which functions take it.

The text is that of the docstrings of `topk_attention` and `topk_ffn`; which functions take an
option is found out by calling each of them with it, forward and backward:
`python docs/tables/options.py`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import topk_np

PAGE = Path(__file__).parents[1] / "options.md"
LENGTH, WIDTH = 6, 4
Call = Callable[[np.ndarray, dict[str, Any]], None]

INTRODUCTION = """# The options

<!-- Made by docs/tables/options.py from the code. -->

All combine, in any number, and have one name everywhere. Each works on NumPy arrays, on any library
of the array API standard, and on CuPy arrays, where the same tests pass on CuPy's CPU build
([running on a GPU](howto/gpu.md)).

## Attention

`topk_attention`, `dense_attention` and `multihead_attention` take the same options, except for the
rule by which keys are kept, which dense attention does not need.

A score is made in this order: the product of query and key, times `scale`; `softcap`; plus `bias`;
then the masks. Then keys are chosen, the softmax is taken, and `dropout` comes last.

"""
BETWEEN = """
## Feed-forward layers

A score is the product of token and key, plus `key_bias`, and goes through the `activation`. With a
`gate` it is the gate's score that does, and the result is multiplied by the other one. Units are
ranked by what `select` says, and `value_bias` is added last.

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
    """The options of a kind of function, and the functions that may take them."""

    documented: Callable[..., Any]
    """Its docstring has them."""
    data: tuple[str, ...]
    calls: dict[str, Call]
    examples: dict[str, Any]
    """Values of options that not all of these functions take; others are given their default."""


TABLES = (
    Table(
        topk_np.topk_attention,
        ("query", "key", "value"),
        {"dense": dense_attention, "top-k": topk_attention, "multi-head": multihead_attention},
        {"k": 2, "p": 0.5, "max_k": 3, "return_lse": True},
    ),
    Table(
        topk_np.topk_ffn,
        ("x", "keys", "values"),
        {"dense": dense_ffn, "top-k": topk_ffn},
        {"k": 2, "select": "activation"},
    ),
)
GOES_WITH = {"p": {"max_k": 3}, "max_k": {"p": 0.5}}


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """The text of the page."""
    return INTRODUCTION + BETWEEN.join(map(written, TABLES))


def written(table: Table) -> str:
    """A table, with a line for each option."""
    rows = [["option", "form", "what it does", *table.calls]]
    rows.append(["---"] * len(rows[0]))
    for name, parameter in inspect.signature(table.documented).parameters.items():
        if name not in table.data:
            example = table.examples.get(name, parameter.default)
            works = ["yes" if takes(call, name, example) else "no" for call in table.calls.values()]
            rows.append([f"`{name}`", *described(name, table.documented), *works])
    return "```{rst-class} options\n```\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def described(name: str, function: Callable[..., Any]) -> tuple[str, str]:
    """The type of an option in a docstring, and the first sentence on it."""
    text = inspect.getdoc(function) or ""
    found = re.search(rf"^(?:\w+, )*{name}(?:, \w+)* : (.*)\n((?:    .*\n)+)", text, re.MULTILINE)
    assert found, f"{name} is not documented"
    kind = found[1].removesuffix(", optional").replace("concurrent.futures.", "")
    sentence = re.split(r"(?<=\.) ", " ".join(found[2].split()))[0]
    return kind, sentence.replace("``", "`")


def takes(call: Call, name: str, example: Any) -> bool:
    """Return whether a function takes an option."""
    x = np.random.default_rng(0).standard_normal((LENGTH, WIDTH))
    try:
        call(x, {name: example, **GOES_WITH.get(name, {})})
    except TypeError:  # not an option of this function
        return False
    return True


if __name__ == "__main__":
    main()
