"""
Write docs/errors.md: the errors of the package, each made by a wrong call.

Calls and advice are in wrong_calls.py; the messages are what the calls say when they are made:
`python docs/tables/errors.py`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import array_api_strict
import numpy as np

import topk_np
import topk_np.dask
from topk_np import baselines, diagnostics, layers, tasks, testing, training
from topk_np.models import Model, load_model
from topk_np.models.model import per_layer
from topk_np.tasks import pixels  # noqa: F401  for tasks.pixels

sys.path.insert(0, str(Path(__file__).parent))
from wrong_calls import SECTIONS

PAGE = Path(__file__).parents[1] / "errors.md"
INTRODUCTION = """# The errors, and what to do

<!-- Made by docs/tables/errors.py from the code. -->

Every error names the argument, shows what came and says what is allowed. A `TypeError` is about
what something is (its type, dtype, library), a `ValueError` about what it holds. Whatever is wrong
is said before anything is computed, and no argument is changed. Each message below is what the call
under it says, with

```python
rng = np.random.default_rng(0)
x, y = rng.standard_normal((6, 4)), rng.standard_normal((9, 4))
out, residuals = topk_attention_fwd(x, x, x, k=2)
```

"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """The text of the page."""
    return INTRODUCTION + "\n".join(
        f"## {title}\n\n" + "\n".join(map(entry, wrongs)) for title, wrongs in SECTIONS.items()
    )


def entry(wrong: Any) -> str:
    """The message of a call, the call, and what to do."""
    error = made(wrong.call)
    said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return f"```text\n{said}\n```\n\n`{wrong.call}`\\\n{wrong.advice}\n"


def made(call: str) -> Exception:
    """The error of a call, made in a folder with two damaged files and no others."""
    with empty_folder():
        try:
            eval(call, NAMES)
        except Exception as error:
            return error
    raise AssertionError(f"{call} is not refused")


@contextmanager
def empty_folder() -> Iterator[None]:
    """Work in a new folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("damaged.gguf").write_bytes(b"GGUF")
        training.save_params("damaged.safetensors", {"weight": x})
        whole = Path("damaged.safetensors").read_bytes()
        Path("damaged.safetensors").write_bytes(whole[:-8] + bytes(8))
        try:
            yield
        finally:
            os.chdir(before)


def with_kernels(setting: str, function: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    """Call a function with TOPK_NP_KERNELS set."""
    with patch.dict(os.environ, TOPK_NP_KERNELS=setting):
        return function(*arrays, **options)


rng = np.random.default_rng(0)
x, y = rng.standard_normal((6, 4)), rng.standard_normal((9, 4))
out, residuals = topk_np.topk_attention_fwd(x, x, x, k=2)
cache = topk_np.KVCache()
cache.append(x, x)

NAMES: dict[str, Any] = {
    **{name: getattr(topk_np, name) for name in topk_np.__all__},
    "array_api_strict": array_api_strict,
    "np": np,
    "rng": rng,
    "x": x,
    "y": y,
    "ProcessPoolExecutor": ProcessPoolExecutor,
    "with_kernels": with_kernels,
    "residuals": residuals,
    "dout": np.ones_like(out),
    "cache": cache,
    "with_lse": topk_np.topk_attention_fwd(x, x, x, k=2, return_lse=True)[1],
    "weights": topk_np.MultiheadWeights(*[np.eye(4)] * 4),
    "baselines": baselines,
    "diagnostics": diagnostics,
    "layers": layers,
    "tasks": tasks,
    "testing": testing,
    "training": training,
    "dask": topk_np.dask,
    "Model": Model,
    "load_model": load_model,
    "per_layer": per_layer,
}

if __name__ == "__main__":
    main()
