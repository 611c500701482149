"""
Write docs/options.md: every option of attention, what it is for, and where it works.

The text is that of the docstring of `topk_attention`; where an option works is found out by calling
each function with it, forward and backward, on each engine: `python docs/tables/options.py`.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import topk_np
from topk_np.options import AttentionOptions

PAGE = Path(__file__).parents[1] / "options.md"
LENGTH = 6
EXAMPLES: dict[str, Any] = {
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
    "chunk_size": 2,
    "memory_budget": 2**20,
    "workers": 2,
}
GOES_WITH = {"p": {"max_k": 3}, "max_k": {"p": 0.5}, "query_offset": {"is_causal": True}}
ENGINES = {"NumPy": "", "portable": "portable"}
INTRODUCTION = """# The options of attention

<!-- Made by docs/tables/options.py from the code. -->

All combine, in any number. `topk_attention`, `dense_attention` and `multihead_attention` take the
same, but for the rule by which keys are kept, which dense attention has no need of. Each was called
forward and backward on the engines named; on CuPy the same tests pass, run on its CPU build
([Running on a GPU](howto/gpu.md)).

A score is made in this order: the product of query and key, times `scale`; `softcap`; plus `bias`;
then all that masks. Then keys are chosen, the softmax is taken, and `dropout` is the last.

```{rst-class} sentences
```

| option | form | what it does | dense | top-k | multi-head | engines |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """The text of the page."""
    rows = [row(name) for name in inspect.signature(topk_np.topk_attention).parameters]
    return INTRODUCTION + "".join(f"| {' | '.join(cells)} |\n" for cells in rows if cells)


def row(name: str) -> list[str]:
    """The cells of one option; none for the arrays of attention."""
    if name not in EXAMPLES:
        assert name in ("query", "key", "value"), f"{name} has no example"
        return []
    works = {
        (function, engine): called(function, engine, name)
        for function in (dense, topk, multihead)
        for engine in ENGINES
    }
    first = next(iter(ENGINES))
    everywhere = [
        engine
        for engine in ENGINES
        if all(works[f, engine] == works[f, first] for f in (dense, topk, multihead))
    ]
    marks = ["yes" if works[f, first] else "" for f in (dense, topk, multihead)]
    return [f"`{name}`", *described(name), *marks, ", ".join(everywhere)]


def described(name: str) -> tuple[str, str]:
    """The type of an option in the docstring of `topk_attention`, and the first sentence on it."""
    text = inspect.getdoc(topk_np.topk_attention) or ""
    found = re.search(rf"^{name} : (.*)\n((?:    .*\n)+)", text, re.MULTILINE)
    assert found, f"{name} is not documented"
    kind = found[1].removesuffix(", optional")
    sentence = re.split(r"(?<=\.) ", " ".join(found[2].split()))[0]
    return kind, sentence.replace("``", "`")


def dense(x: np.ndarray, options: dict[str, Any]) -> None:
    out, residuals = topk_np.dense_attention_fwd(x, x, x, **options)
    topk_np.dense_attention_bwd(residuals, out)


def topk(x: np.ndarray, options: dict[str, Any]) -> None:
    rule = {} if options.keys() & {"k", "p"} else {"k": 2}
    out, residuals = topk_np.topk_attention_fwd(x, x, x, **options, **rule)
    topk_np.topk_attention_bwd(residuals, out)


def multihead(x: np.ndarray, options: dict[str, Any]) -> None:
    weights = topk_np.MultiheadWeights(*[np.eye(4)] * 4)
    rule = {} if options.keys() & {"k", "p"} else {"k": 2}
    out, residuals = topk_np.multihead_attention_fwd(x, weights, heads=2, **options, **rule)
    topk_np.multihead_attention_bwd(residuals, out)


def called(function: Callable[..., None], engine: str, name: str) -> bool:
    """Whether a function takes an option on an engine."""
    x = np.random.default_rng(0).standard_normal((LENGTH, 4))
    with engine_of(ENGINES[engine]):
        try:
            function(x, {name: EXAMPLES[name], **GOES_WITH.get(name, {})})
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


assert AttentionOptions.__annotations__.keys() < EXAMPLES.keys()
if __name__ == "__main__":
    main()
